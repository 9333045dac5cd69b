# CUDA kernels without a GPU: csrc/cuda/*.cu compiled as C++ against the headers in
# csrc/tests/cuda_cpu, and executed. Of the CUDA toolkit only header files are needed.
find_path(SEQ2SEQ_EXT_CUDA_INCLUDE_DIR cuda_runtime_api.h
          HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda /opt/cuda
          PATH_SUFFIXES include NO_CMAKE_FIND_ROOT_PATH
          DOC "Folder of the CUDA toolkit's header files")

set(cuda_cpu_lacks "")
if(NOT SEQ2SEQ_EXT_CUDA_INCLUDE_DIR)
  set(cuda_cpu_lacks "the CUDA toolkit's header files (name their folder in \
SEQ2SEQ_EXT_CUDA_INCLUDE_DIR)")
elseif(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64|aarch64|arm64)$")
  set(cuda_cpu_lacks "an x86-64 or aarch64 processor")
elseif(NOT "cxx_std_20" IN_LIST CMAKE_CXX_COMPILE_FEATURES)
  set(cuda_cpu_lacks "a C++20 compiler")
endif()
if(cuda_cpu_lacks)
  set(cuda_cpu_default OFF)
else()
  set(cuda_cpu_default ON)
endif()
option(SEQ2SEQ_EXT_CUDA_CPU "Execute the CUDA kernels on the CPU, as tests" ${cuda_cpu_default})

if(SEQ2SEQ_EXT_CUDA_CPU AND cuda_cpu_lacks)
  message(FATAL_ERROR "SEQ2SEQ_EXT_CUDA_CPU needs ${cuda_cpu_lacks}.")
elseif(NOT SEQ2SEQ_EXT_CUDA_CPU)
  if(cuda_cpu_lacks)
    message(STATUS "CUDA kernels are not executed: that needs ${cuda_cpu_lacks}")
  endif()
  # Declares no test.
  function(add_cuda_test name)
  endfunction()
  return()
endif()

# How kernels are compiled here: torch hands the same definitions to nvcc.
add_library(cuda_cpu_headers INTERFACE)
target_compile_features(cuda_cpu_headers INTERFACE cxx_std_20)
target_compile_definitions(
  cuda_cpu_headers INTERFACE __CUDA_NO_HALF_OPERATORS__ __CUDA_NO_HALF_CONVERSIONS__
  __CUDA_NO_BFLOAT16_CONVERSIONS__ __CUDA_NO_HALF2_OPERATORS__)
target_compile_options(cuda_cpu_headers INTERFACE -Wno-unknown-pragmas)
# The toolkit's folder is searched last (SYSTEM), so that the headers of these names are ours.
target_include_directories(cuda_cpu_headers INTERFACE csrc csrc/tests/cuda_cpu)
target_include_directories(cuda_cpu_headers SYSTEM INTERFACE ${SEQ2SEQ_EXT_CUDA_INCLUDE_DIR})

# The runtime tells sanitizers itself what they have to know and is compiled without any; -O2 keeps
# it free of calls to inline functions that a sanitized file may have emitted as well.
add_library(cuda_cpu OBJECT csrc/tests/cuda_cpu/block.cpp csrc/tests/cuda_cpu/cuda_cpu.cpp
            csrc/tests/cuda_cpu/cudart.cpp csrc/tests/cuda_cpu/fiber.cpp)
target_link_libraries(cuda_cpu PUBLIC cuda_cpu_headers Threads::Threads)
target_compile_options(cuda_cpu PRIVATE -fno-sanitize=all -O2)

# All of these tests and nothing else, as for ThreadSanitizer: target cuda_tests, ctest -L cuda_cpu.
add_custom_target(cuda_tests)

# A .cu file is compiled by way of a C++ file that includes it, so that the same file may be nvcc's
# elsewhere in the build.
set(cuda_cpu_sources csrc/cuda/plan.cpp)
foreach(name decoder persistent_bf16 persistent_f16 persistent_f32 persistent_f64 pointwise recurrence rows)
  set(file ${PROJECT_BINARY_DIR}/cuda_cpu/${name}.cpp)
  file(CONFIGURE OUTPUT ${file} CONTENT "#include \"cuda/${name}.cu\"\n")
  list(APPEND cuda_cpu_sources ${file})
endforeach()
add_library(cuda_cpu_kernels OBJECT ${cuda_cpu_sources})
target_link_libraries(cuda_cpu_kernels PUBLIC cuda_cpu_headers)

# add_cuda_test(name libraries...): the executable of csrc/tests/<name>.cpp; it fails by its exit
# status.
function(add_cuda_test name)
  add_executable(${name} csrc/tests/${name}.cpp)
  target_link_libraries(${name} PRIVATE cuda_cpu ${ARGN})
  add_dependencies(cuda_tests ${name})
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES LABELS cuda_cpu)
endfunction()

add_cuda_test(test_cuda_cpu)
add_cuda_test(test_cuda_rnn cuda_cpu_kernels)
add_cuda_test(test_cuda_recurrence cuda_cpu_kernels kernels)
add_cuda_test(test_cuda_decoder cuda_cpu_kernels kernels)
if(SEQ2SEQ_EXT_SANITIZE)  # which makes all of it too slow
  add_test(NAME test_cuda_rnn_few COMMAND test_cuda_rnn few)
  set_tests_properties(test_cuda_rnn PROPERTIES DISABLED ON)
  set_tests_properties(test_cuda_rnn_few PROPERTIES LABELS cuda_cpu)
else()
  add_test(NAME test_cuda_mutants COMMAND test_cuda_rnn mutants)
  add_test(NAME test_cuda_recurrence_mutants COMMAND test_cuda_recurrence mutants)
  add_test(NAME test_cuda_decoder_mutants COMMAND test_cuda_decoder mutants)
  set_tests_properties(test_cuda_mutants test_cuda_recurrence_mutants test_cuda_decoder_mutants
                       PROPERTIES LABELS cuda_cpu)
endif()

# The CUDA operators on CPU tensors: a library that pytest --cuda-on-cpu loads in place of the CPU
# kernels.
option(SEQ2SEQ_EXT_CUDA_ON_CPU "Build the CUDA operators for CPU tensors, as a test" OFF)
if(SEQ2SEQ_EXT_CUDA_ON_CPU)
  include(cmake/torch.cmake)
  add_library(cuda_on_cpu MODULE csrc/cuda/decoder.cpp csrc/cuda/recurrence.cpp csrc/cuda/rnn.cpp
              csrc/cuda/runtime.cpp csrc/cuda/sequences.cpp csrc/cpu/scratch.cpp
              ${glue_sources})
  target_compile_definitions(cuda_on_cpu PRIVATE SEQ2SEQ_EXT_CUDA_ON_CPU)
  target_link_libraries(cuda_on_cpu PRIVATE cuda_cpu cuda_cpu_kernels torch_headers
                                            ${torch_libraries})
  set_target_properties(cuda_on_cpu PROPERTIES PREFIX "")
endif()
