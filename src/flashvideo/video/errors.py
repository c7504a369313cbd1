"""The one error of this package: a message of one sentence for the user."""


class VideoError(ValueError):
    """A video or picture file that cannot be read or written as asked; the message is one sentence for the user."""
