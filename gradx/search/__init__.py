"""Line searches: how far to go in the direction that the updates say."""
