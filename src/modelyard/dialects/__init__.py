"""The API families that clients speak, translated to and from OpenAI's: pure, bytes to bytes."""
