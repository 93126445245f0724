"""The method's loss: autoregressive on text, absorbing diffusion on audio."""
