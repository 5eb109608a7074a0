"""Batch inference over many images, by shards that processes and machines share."""
