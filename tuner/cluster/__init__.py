"""Ray: a cluster that is started or joined, one run of Tune, and the actors that train."""
