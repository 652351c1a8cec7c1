"""Text to ids and back: WordPiece, SentencePiece and Hugging Face's tokenizers."""
