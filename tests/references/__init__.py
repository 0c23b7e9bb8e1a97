"""Float64 references: `driver` steps over them, the other modules hold them by family."""

from references.classic import *
from references.driver import *
