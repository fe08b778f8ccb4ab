"""Ray Data and Ray Train: pools, streams, training, independent trials, clusters, jobs."""
