"""The text autoencoder."""
