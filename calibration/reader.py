from __future__ import annotations
from dataclasses import dataclass
from typing import Any, Protocol
from collections.abc import Mapping, Iterator
import numpy as np
@dataclass(frozen=True)
class Sample:
    feed: Mapping[str, Any]
    label: int | None = None
class DataReader(Protocol):
    description: str
    is_random: bool
    def __iter__(self) -> Iterator[Sample]: ...
@dataclass
class R:
    description: str; is_random: bool; data: Any; labels: Any; limit: int
    def __iter__(self):
        n=min(self.limit,len(next(iter(self.data.values()))))
        for i in range(n): yield Sample({k:v[i:i+1] for k,v in self.data.items()}, None if self.labels is None else int(self.labels[i]))
def open_data(source, specs, *, limit=512, images=None, needs_label=False):
    z=dict(np.load(source)) if isinstance(source,str) else dict(source)
    lab=z.pop('labels',None)
    return R(str(source).rsplit('/')[-1],False,z,lab,limit)
def random_data(specs, n, seed):
    r=np.random.default_rng(seed)
    d={}
    for s in specs:
        sh=[n]+[(x if isinstance(x,int) else 16) for x in s.shape[1:]]
        d[s.name]=r.standard_normal(sh).astype(s.dtype) if s.dtype.kind=='f' else r.integers(0,2,sh).astype(s.dtype)
    return R('random data',True,d,None,n)
