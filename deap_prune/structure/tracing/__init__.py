"""From one forward pass to groups of coupled channels, each coupling proven."""
