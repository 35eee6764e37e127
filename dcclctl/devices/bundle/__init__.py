"""The bundle that leaves the cloud: graphs, item table and runners of a device that has neither torch nor dcclctl."""
