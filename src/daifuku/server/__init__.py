"""The server: jobs that outlive a crash, workers that make them, and the shapes of the API around both."""
