# The Python extension module `_C`: the CPU kernels, the ops that torch sees, and pybind11's control
# surface in one library. The CUDA library, where it is wanted, is described in cuda.cmake.

find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)

include(cmake/torch.cmake)

# --- pybind11: headers only -----------------------------------------------------------------------

# pip's isolated build hands us a fresh copy in a folder of random name each time. A copy in the
# build folder, touched only where the content differs, keeps incremental builds incremental.
execute_process(
  COMMAND ${Python_EXECUTABLE} -c "import pybind11; print(pybind11.get_include())"
  OUTPUT_VARIABLE pybind11_include OUTPUT_STRIP_TRAILING_WHITESPACE
  RESULT_VARIABLE pybind11_missing)
if(pybind11_missing)
  message(FATAL_ERROR "${Python_EXECUTABLE} has no pybind11: pip install pybind11")
endif()
execute_process(
  COMMAND ${CMAKE_COMMAND} -E copy_directory_if_different ${pybind11_include}
          ${PROJECT_BINARY_DIR}/include
  COMMAND_ERROR_IS_FATAL ANY)

# --- targets --------------------------------------------------------------------------------------

add_library(ops OBJECT csrc/ops.cpp csrc/cpu/compact.cpp csrc/cpu/decoder.cpp csrc/cpu/encoder.cpp
            csrc/cpu/decoder_weights.cpp csrc/cpu/decoding.cpp csrc/cpu/decoding_arguments.cpp
            csrc/cpu/linear.cpp csrc/cpu/packed.cpp csrc/cpu/recurrence.cpp csrc/cpu/rnn.cpp
            csrc/cpu/search.cpp csrc/cpu/translation.cpp)
target_link_libraries(ops PRIVATE torch_headers kernels)

set(cuda_architectures)
set(cuda_version)
if(SEQ2SEQ_EXT_CUDA)
  include(cmake/cuda.cmake)
endif()
if(cuda_architectures)
  list(JOIN cuda_architectures "\", \"" cuda_architectures)
  set(cuda_architectures "\"${cuda_architectures}\"")
endif()

string(TOUPPER ${CMAKE_BUILD_TYPE} build_type)
set(cxx_flags "${CMAKE_CXX_FLAGS} ${CMAKE_CXX_FLAGS_${build_type}}")
list(JOIN compile_options " " option_flags)
string(STRIP "${cxx_flags} ${option_flags}" cxx_flags)
configure_file(${PROJECT_SOURCE_DIR}/cmake/build_config.h.in ${PROJECT_BINARY_DIR}/build_config.h)

# The CUDA engine's plan is plain C++ and can be asked for without a GPU.
python_add_library(_C MODULE WITH_SOABI csrc/module.cpp csrc/cuda/plan.cpp)
target_include_directories(_C SYSTEM PRIVATE ${PROJECT_BINARY_DIR}/include)
target_include_directories(_C PRIVATE ${PROJECT_BINARY_DIR})
target_link_libraries(_C PRIVATE kernels glue ops ${torch_libraries})
set_target_properties(_C PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${SEQ2SEQ_EXT_OUTPUT_DIR})
