"""The HTTP server: OpenAI's protocol over the decoding engine."""
