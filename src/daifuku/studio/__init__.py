"""A page in the browser for everything that the API can do, made with Gradio; it knows the API and nothing else."""
