"""Types that several folders use."""

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh

# An array on the host or on a device. Functions that run under jit take either.
Array = jax.Array | np.ndarray
# A mesh with devices, or only its shape: enough to check shardings.
AnyMesh = Mesh | AbstractMesh
