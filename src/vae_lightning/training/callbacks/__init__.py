"""What happens around training: pictures, dashboards, use of the latents, progress, checkpoints."""
