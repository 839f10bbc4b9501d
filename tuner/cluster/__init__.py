"""Ray: starts or joins a cluster, runs Tune once, and holds the actors that train."""
