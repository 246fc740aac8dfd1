"""XLA flags that compile several times as fast as the defaults, for programs that run slower.

For tests, whose time is mostly compilation; results stay the same bit for bit between runs that
all use them.  No JAX is imported here: flags count only when they are set before it is.
"""

import importlib.metadata


def xla_flags() -> list[str]:
    """The flags that the installed jaxlib knows (it ends the process at an unknown one)."""
    flags = [
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_opt_preset=fast_compile",
    ]
    version = importlib.metadata.version("jaxlib")
    if tuple(int(part) for part in version.split(".")[:2]) < (0, 11):
        flags += [  # they save two thirds of what is left
            "--xla_cpu_use_fusion_emitters=false",
            "--xla_cpu_parallel_codegen_split_count=1",
        ]
    return flags
