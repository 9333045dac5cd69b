# The CUDA library `_cuda`: the kernels, which know no torch, and the glue that registers them as the
# CUDA side of the ops. A library of its own, so that `_C` loads where there is no CUDA: Python loads
# this one only beside a torch of the same CUDA major (seq2seq_ext/loading.py).
#
# Of the toolkit it takes nvcc, the headers and the static cudart; no GPU and no driver.

# --- sources --------------------------------------------------------------------------------------

# Kernels, each compiled once per architecture, and the C++ beside them that knows no torch either.
set(cuda_glue csrc/cuda/decoder.cpp csrc/cuda/recurrence.cpp csrc/cuda/rnn.cpp
    csrc/cuda/runtime.cpp csrc/cuda/sequences.cpp)
file(GLOB cuda_kernels RELATIVE ${PROJECT_SOURCE_DIR} CONFIGURE_DEPENDS
     csrc/cuda/*.cu csrc/cuda/*.cpp)
list(REMOVE_ITEM cuda_kernels ${cuda_glue})

# --- nvcc -----------------------------------------------------------------------------------------

set(preflight ${Python_EXECUTABLE} ${PROJECT_SOURCE_DIR}/build_tools/preflight.py)
if(NOT CMAKE_CUDA_COMPILER)
  execute_process(
    COMMAND ${preflight} nvcc
    OUTPUT_VARIABLE CMAKE_CUDA_COMPILER OUTPUT_STRIP_TRAILING_WHITESPACE
    COMMAND_ERROR_IS_FATAL ANY)
endif()
execute_process(
  COMMAND ${CMAKE_COMMAND} -E env CUDACXX=${CMAKE_CUDA_COMPILER} ${preflight} cuda-architectures
  OUTPUT_VARIABLE cuda_architectures OUTPUT_STRIP_TRAILING_WHITESPACE
  COMMAND_ERROR_IS_FATAL ANY)
string(REPLACE " " ";" cuda_architectures "${cuda_architectures}")
set(CMAKE_CUDA_ARCHITECTURES ${cuda_architectures})
list(TRANSFORM CMAKE_CUDA_ARCHITECTURES REPLACE "^([0-9]+[af]?)$" "\\1-real")
list(TRANSFORM CMAKE_CUDA_ARCHITECTURES REPLACE "\\+PTX$" "-virtual")

# One C++ compiler for kernels and glue, unless CUDAHOSTCXX names another: nvcc takes none that came
# out after it. A launcher in CXX ("ccache g++") is no compiler to nvcc.
if(NOT CMAKE_CUDA_HOST_COMPILER AND NOT DEFINED ENV{CUDAHOSTCXX} AND NOT CMAKE_CXX_COMPILER_ARG1)
  set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER})
endif()

set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)  # torch's own cudart may be of another minor
enable_language(CUDA)
set(CMAKE_CUDA_FLAGS_RELWITHDEBINFO "-O3 -lineinfo -DNDEBUG")  # what a profiler sees is what ships
set(CMAKE_CUDA_FLAGS_DEBUG "-O1 -g -lineinfo")
string(REGEX MATCH "^[0-9]+\\.[0-9]+" cuda_version "${CMAKE_CUDA_COMPILER_VERSION}")
list(JOIN cuda_architectures ", " architectures_text)
message(STATUS "Building the CUDA library with nvcc ${cuda_version} for ${architectures_text}")

# --- targets --------------------------------------------------------------------------------------

file(STRINGS cmake/nvcc_flags.txt nvcc_flags REGEX "^[^#]")
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS cmake/nvcc_flags.txt)
add_library(cuda_kernels OBJECT ${cuda_kernels})
target_include_directories(cuda_kernels PUBLIC csrc)
target_include_directories(
  cuda_kernels SYSTEM PUBLIC $<$<COMPILE_LANGUAGE:CXX>:${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES}>)
target_compile_options(
  cuda_kernels
  PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:${nvcc_flags}
          -Xcompiler=-fmacro-prefix-map=${PROJECT_SOURCE_DIR}/=>)

# USE_CUDA: torch's shim then declares what lies in libtorch_cuda, such as the current stream. It
# includes nothing of CUDA for that.
add_library(_cuda MODULE ${cuda_glue} csrc/cpu/scratch.cpp)
target_compile_definitions(_cuda PRIVATE USE_CUDA)
target_link_libraries(
  _cuda
  PRIVATE cuda_kernels glue torch_headers ${torch_libraries}
          ${SEQ2SEQ_EXT_TORCH_DIR}/lib/${CMAKE_SHARED_LIBRARY_PREFIX}torch_cuda${CMAKE_SHARED_LIBRARY_SUFFIX})
# Not one symbol of the static cudart is offered to other libraries, which have a cudart of their own.
target_link_options(_cuda PRIVATE LINKER:--exclude-libs,ALL LINKER:--no-undefined)
set_target_properties(
  _cuda PROPERTIES PREFIX "" LIBRARY_OUTPUT_DIRECTORY ${SEQ2SEQ_EXT_OUTPUT_DIR})
