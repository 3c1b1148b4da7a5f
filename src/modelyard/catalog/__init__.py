"""What is on disk: model files found, read, classified and measured by their headers alone."""
