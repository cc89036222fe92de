from dataclasses import dataclass
@dataclass
class ImageOptions:
    pass
