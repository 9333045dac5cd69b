# torch for whatever is linked with it: its headers and two libraries, nothing else; and the glue that
# every device needs.

if(NOT Python_EXECUTABLE)
  find_package(Python 3.10 REQUIRED COMPONENTS Interpreter)
endif()

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
target_compile_options(torch_headers INTERFACE
                       -fmacro-prefix-map=${SEQ2SEQ_EXT_TORCH_DIR}/include/=)

set(torch_libraries)
foreach(name torch_cpu c10)
  list(APPEND torch_libraries
       ${SEQ2SEQ_EXT_TORCH_DIR}/lib/${CMAKE_SHARED_LIBRARY_PREFIX}${name}${CMAKE_SHARED_LIBRARY_SUFFIX})
endforeach()

# What the glue of every device needs: the checks of arguments, and tensors.
set(glue_sources csrc/glue/arguments.cpp csrc/glue/decoder.cpp csrc/glue/recurrence.cpp
    csrc/glue/tensors.cpp)
add_library(glue OBJECT ${glue_sources})
target_include_directories(glue PRIVATE csrc)
target_link_libraries(glue PRIVATE torch_headers)
