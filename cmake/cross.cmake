# SPDX-License-Identifier: Apache-2.0
# Toolchain file: Debian's cross compiler for PITH_CROSS (a GNU triple), programs run under qemu as PITH_QEMU_CPU.
# Headers that are the same everywhere, Catch2's, xsimd's and Eigen's, are the host's, seen through a folder of their own: /usr/include as a whole
# would bring the host's C library along.
set(PITH_CROSS aarch64-linux-gnu CACHE STRING "GNU triple of the machine to compile for")
set(PITH_QEMU_CPU "" CACHE STRING "Processor that qemu shows to the programs; empty: qemu's own choice")
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES PITH_CROSS PITH_QEMU_CPU)

string(REGEX REPLACE "-.*" "" CMAKE_SYSTEM_PROCESSOR ${PITH_CROSS})
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_CXX_COMPILER ${PITH_CROSS}-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-${CMAKE_SYSTEM_PROCESSOR}-static -L /usr/${PITH_CROSS})
if(PITH_QEMU_CPU)
  list(APPEND CMAKE_CROSSCOMPILING_EMULATOR -cpu ${PITH_QEMU_CPU})
endif()

set(CMAKE_FIND_ROOT_PATH /usr/${PITH_CROSS})
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)

set(shared_headers ${CMAKE_BINARY_DIR}/host_headers)
foreach(package catch2 xsimd eigen3)
  find_path(folder_of_${package} ${package} PATHS /usr/include /usr/local/include NO_DEFAULT_PATH NO_CMAKE_FIND_ROOT_PATH)
  if(folder_of_${package} AND NOT EXISTS ${shared_headers}/${package})
    file(MAKE_DIRECTORY ${shared_headers})
    file(CREATE_LINK ${folder_of_${package}}/${package} ${shared_headers}/${package} SYMBOLIC)
  endif()
endforeach()
set(PITH_XSIMD_INCLUDE_DIR ${shared_headers} CACHE PATH "Folder that holds xsimd/xsimd.hpp")
foreach(package "Catch2;Catch2::Catch2;." "Eigen3;Eigen3::Eigen;eigen3")
  list(POP_FRONT package name target folder)
  set(${name}_DIR ${shared_headers} CACHE PATH "Folder that holds ${name}Config.cmake")
  file(WRITE ${shared_headers}/${name}Config.cmake "add_library(${target} INTERFACE IMPORTED)
set_target_properties(${target} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES ${shared_headers}/${folder})
")
endforeach()
