"""From noise to a clean latent: schedule, guidance, noise and solvers know a velocity function, but no model."""
