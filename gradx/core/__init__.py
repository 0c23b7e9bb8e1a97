"""A transformation, and its description: the pair of functions, trees, errors, specs.

The library writes `core.recorded` and `core.where()`, after `from gradx import core`. May import:
`contract` and `lowering`.
"""

from gradx.core.transform import FUNCTIONS as FUNCTIONS
from gradx.core.transform import REGISTRY as REGISTRY
from gradx.core.transform import Count as Count
from gradx.core.transform import Described as Described
from gradx.core.transform import Params as Params
from gradx.core.transform import Part as Part
from gradx.core.transform import Spec as Spec
from gradx.core.transform import State as State
from gradx.core.transform import Transform as Transform
from gradx.core.transform import Updates as Updates
from gradx.core.transform import given as given
from gradx.core.transform import inside as inside
from gradx.core.transform import is_transform as is_transform
from gradx.core.transform import recorded as recorded
from gradx.core.transform import recorded_class as recorded_class
from gradx.core.transform import registered as registered
from gradx.core.transform import registered_name as registered_name
from gradx.core.transform import show as show
from gradx.core.transform import where as where
from gradx.core.transform import with_extra_args as with_extra_args
from gradx.core.transform import within as within
