# The Python extension module `_C`: the kernels, the ops that torch sees, and pybind11's control
# surface in one library.

find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)

# --- torch: headers and two libraries, nothing else ----------------------------------------------

# Not find_package(Torch): beside a CUDA build of torch it is fatal without the whole toolkit.
if(NOT SEQ2SEQ_EXT_TORCH_DIR)
  execute_process(
    COMMAND ${Python_EXECUTABLE} ${PROJECT_SOURCE_DIR}/build_tools/preflight.py torch
    OUTPUT_VARIABLE SEQ2SEQ_EXT_TORCH_DIR OUTPUT_STRIP_TRAILING_WHITESPACE
    COMMAND_ERROR_IS_FATAL ANY)
endif()
file(STRINGS ${SEQ2SEQ_EXT_TORCH_DIR}/version.py torch_version REGEX "^__version__ = ")
string(REGEX REPLACE "^__version__ = '(.*)'$" "\\1" torch_version "${torch_version}")
message(STATUS "Building against torch ${torch_version} in ${SEQ2SEQ_EXT_TORCH_DIR}")

# The stable ABI as it was in torch 2.10: nothing newer is declared, and so the one binary loads
# with every torch from 2.10 on.
set(torch_target_version 2.10)
add_library(torch_headers INTERFACE)
target_include_directories(torch_headers SYSTEM INTERFACE ${SEQ2SEQ_EXT_TORCH_DIR}/include)
target_compile_definitions(torch_headers INTERFACE TORCH_TARGET_VERSION=0x020a000000000000)

set(torch_libraries)
foreach(name torch_cpu c10)
  list(APPEND torch_libraries
       ${SEQ2SEQ_EXT_TORCH_DIR}/lib/${CMAKE_SHARED_LIBRARY_PREFIX}${name}${CMAKE_SHARED_LIBRARY_SUFFIX})
endforeach()

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

add_library(ops OBJECT csrc/ops.cpp csrc/cpu/compact.cpp csrc/cpu/packed.cpp csrc/cpu/rnn.cpp
            csrc/glue/arguments.cpp csrc/glue/tensors.cpp)
target_link_libraries(ops PRIVATE torch_headers kernels)

string(TOUPPER ${CMAKE_BUILD_TYPE} build_type)
set(cxx_flags "${CMAKE_CXX_FLAGS} ${CMAKE_CXX_FLAGS_${build_type}}")
list(JOIN compile_options " " option_flags)
string(STRIP "${cxx_flags} ${option_flags}" cxx_flags)
configure_file(${PROJECT_SOURCE_DIR}/cmake/build_config.h.in ${PROJECT_BINARY_DIR}/build_config.h)

# The CUDA engine's plan is plain C++ and can be asked for without a GPU.
python_add_library(_C MODULE WITH_SOABI csrc/module.cpp csrc/cuda/plan.cpp)
target_include_directories(_C SYSTEM PRIVATE ${PROJECT_BINARY_DIR}/include)
target_include_directories(_C PRIVATE ${PROJECT_BINARY_DIR})
target_link_libraries(_C PRIVATE kernels ops ${torch_libraries})
set_target_properties(_C PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${SEQ2SEQ_EXT_OUTPUT_DIR})
