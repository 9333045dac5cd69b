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
add_library(cuda_cpu OBJECT csrc/tests/cuda_cpu/cuda_cpu.cpp csrc/tests/cuda_cpu/cudart.cpp)
target_link_libraries(cuda_cpu PUBLIC cuda_cpu_headers Threads::Threads)
target_compile_options(cuda_cpu PRIVATE -fno-sanitize=all -O2)

# add_cuda_test(name sources...): the executable of csrc/tests/<name>.cpp with sources of csrc/cuda;
# it fails by its exit status. A .cu file is compiled by way of a C++ file that includes it, so that
# the same file may be nvcc's elsewhere in the build.
function(add_cuda_test name)
  set(files "")
  foreach(source ${ARGN})
    if(source MATCHES "\\.cu$")
      string(REGEX REPLACE "^csrc/" "" included ${source})
      string(REPLACE "/" "_" file ${included})
      set(file ${PROJECT_BINARY_DIR}/cuda_cpu/${file}.cpp)
      file(CONFIGURE OUTPUT ${file} CONTENT "#include \"${included}\"\n")
      list(APPEND files ${file})
    else()
      list(APPEND files ${source})
    endif()
  endforeach()
  add_executable(${name} csrc/tests/${name}.cpp ${files})
  target_link_libraries(${name} PRIVATE cuda_cpu)
  add_test(NAME ${name} COMMAND ${name})
endfunction()

add_cuda_test(test_cuda_cpu)
