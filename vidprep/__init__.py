"""vidprep: video data sets from their official form to WebDataset shards, and back as clips."""

from vidprep.errors import VidprepError
from vidprep.types import DatasetInfo, FrameFormat, RemoteFile, Video

__all__ = ["DatasetInfo", "FrameFormat", "RemoteFile", "Video", "VidprepError", "__version__"]

__version__ = "0.1.0"
