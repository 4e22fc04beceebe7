# SPDX-License-Identifier: Apache-2.0
import re
from pathlib import Path

from conan import ConanFile
from conan.tools.build import check_min_cppstd
from conan.tools.files import copy


class Pith(ConanFile):
    name = "pith"
    description = "Compression and cache primitives for large-language-model inference, header-only"
    license = "Apache-2.0"
    topics = ("llm", "kv-cache", "quantization", "simd", "header-only")
    package_type = "header-library"
    settings = "os", "arch", "compiler", "build_type"
    exports_sources = "include/*", "LICENSE"
    no_copy_source = True

    def set_version(self):
        header = (Path(self.recipe_folder) / "include/pith/core/version.hpp").read_text()
        self.version = ".".join(re.findall(r"^#define PITH_VERSION_\w+ (\d+)$", header, re.MULTILINE))

    def requirements(self):
        self.requires("xsimd/[>=8.1]")

    def validate(self):
        if self.settings.get_safe("compiler.cppstd"):
            check_min_cppstd(self, 20)

    def package_id(self):
        self.info.clear()

    def package(self):
        copy(self, "LICENSE", self.source_folder, str(Path(self.package_folder) / "licenses"))
        copy(self, "*", str(Path(self.source_folder) / "include"), str(Path(self.package_folder) / "include"))

    def package_info(self):
        self.cpp_info.bindirs = []
        self.cpp_info.libdirs = []
        self.cpp_info.set_property("cmake_file_name", "pith")
        self.cpp_info.set_property("cmake_target_name", "pith::pith")
        self.cpp_info.set_property("pkg_config_name", "pith")
