# SPDX-License-Identifier: Apache-2.0
# What the library's own programs (tests, examples, benchmarks) are compiled with. Users of pith::pith get none of it.

if(PROJECT_IS_TOP_LEVEL)
  option(PITH_NATIVE "Compile the programs for this machine's processor" ON)
else()
  option(PITH_NATIVE "Compile the programs for this machine's processor" OFF)
endif()
set(PITH_FLAGS "" CACHE STRING "More compiler and linker flags for the programs, a semicolon list")

if(PROJECT_IS_TOP_LEVEL)
  if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
    set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
  endif()
  find_program(PITH_CCACHE ccache)
  mark_as_advanced(PITH_CCACHE)
  if(PITH_CCACHE AND NOT DEFINED CMAKE_CXX_COMPILER_LAUNCHER)
    set(CMAKE_CXX_COMPILER_LAUNCHER ${PITH_CCACHE})
  endif()
endif()
set(CMAKE_CXX_EXTENSIONS OFF)

set(flags ${PITH_FLAGS})
if(PITH_NATIVE)
  include(cmake/native.cmake)
  pith_native_flags(native_flags)
  list(PREPEND flags ${native_flags})
endif()
set(PITH_PROGRAM_FLAGS ${flags})
list(JOIN flags " " shown)
message(STATUS "pith: programs are compiled with: ${shown}")

find_package(Threads REQUIRED)
find_package(Eigen3 QUIET CONFIG)
find_package(nlohmann_json QUIET CONFIG)
find_package(CLI11 QUIET CONFIG)

# PITH_SOURCE_DIR lets a program find the files that lie in the repository, wherever it is started.
add_library(pith_program INTERFACE)
target_link_libraries(pith_program INTERFACE pith::pith Threads::Threads)
target_compile_options(pith_program INTERFACE -Wall -Wextra ${flags})
target_link_options(pith_program INTERFACE ${flags})
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  target_compile_options(pith_program INTERFACE -Wno-uninitialized -Wno-maybe-uninitialized)  # false ones, from its own intrinsics
endif()
target_compile_definitions(pith_program INTERFACE PITH_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
target_include_directories(pith_program INTERFACE ${PROJECT_SOURCE_DIR})
foreach(package Eigen3::Eigen nlohmann_json::nlohmann_json CLI11::CLI11)
  if(TARGET ${package})
    target_link_libraries(pith_program INTERFACE ${package})
  endif()
endforeach()

# What this machine cannot run is written down, for the summary of tests/run.sh.
set(PITH_NOT_RUN_FILE ${PROJECT_BINARY_DIR}/not_run.txt)
file(WRITE ${PITH_NOT_RUN_FILE} "")
function(pith_not_run name reason)
  file(APPEND ${PITH_NOT_RUN_FILE} "${name} (${reason})\n")
endfunction()
