"""The asymmetric causal video autoencoder."""
