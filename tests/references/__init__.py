"""Float64 references: `driver` steps over them, the other modules hold them by family."""

from references.adam_like import *
from references.averaging import *
from references.classic import *
from references.curvature import *
from references.dion import *
from references.driver import *
from references.gated import *
from references.kronecker import *
from references.layerwise import *
from references.matrices import *
from references.modifiers import *
from references.orthogonal import *
from references.psgd import *
from references.quasi_newton import *
from references.selective import *
from references.shampoo import *
from references.tuning_free import *
