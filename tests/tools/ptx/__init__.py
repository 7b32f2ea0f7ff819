"""The compiled GPU kernels, run without a GPU: a functional simulator of PTX on the CPU.

It takes the package's own way up to the launch, with the kernels as Triton, nvcc or NVRTC compiled
them, and compares with backend "torch". ``python -m tests.tools.ptx --help`` says what it runs;
``docs/gpu-proof.md`` says what that proves.

    simulator/      C++: threads, memory and arithmetic of a block, every access checked
    listing.py      PTX text to statements
    decoder.py      statements to instructions; refuses what it does not know
    machine.py      launches on tensors, and what was found
    cuda_launch.py  the launch function of backend "cuda"
    triton_driver.py  the driver object of Triton
    families/       random cases of each family of kernels, and what they must give
    sample.py       many cases, one after the other; mutants.py: with a fault in a kernel
    huge.py         strides and sizes beyond 2^31 elements
"""
