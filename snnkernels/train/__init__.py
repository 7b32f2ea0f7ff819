"""Training with Lightning: data, callbacks, figures, tasks."""
