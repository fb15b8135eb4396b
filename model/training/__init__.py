"""What the network learns from: losses, simulated clicks and boxes, interaction, masked autoencoding."""
