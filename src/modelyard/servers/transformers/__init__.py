"""An engine process of our own: embeddings, rerank and scores by sentence-transformers, chat by
`transformers serve`. Started as `python -m modelyard.servers.transformers`."""
