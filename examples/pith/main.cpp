// SPDX-License-Identifier: Apache-2.0
// pith: packs the tensors of safetensors files, gives them back, checks them and says what is in them.
//
//   pith compress    model.safetensors packed.safetensors      bit for bit what went in comes out, and the file byte for byte
//   pith decompress  packed.safetensors model.safetensors
//   pith verify      packed.safetensors                        every checksum; --decode: every code, too
//   pith inspect     packed.safetensors
//   pith convert     model.gguf packed.safetensors             codes and scales as they are
//   pith bench       [--gigabytes 3]                           a model of made-up weights, there and back
//
// A folder, or a model.safetensors.index.json, stands for all files of a model; then the output is a folder. A file appears whole, or not
// at all, however the program ends.
//
// exit     0  done                      3    reading or writing failed, the disk is full
//          1  damaged or not valid      4    valid, but of a codec or version that is not known here
//          2  the command line          128 + n   ended by signal n
//          Messages name the file, the tensor and the byte
// memory   12 MiB, 8 MiB for each thread (where 32 rows are more than 2 MiB, four times these; they are at most 64 MiB), a few times the
//          headers, and 8 bytes for each 64 KiB of a file: never a whole tensor
// format   docs/formats/container.md
#include <CLI/CLI.hpp>

#include "codecs.hpp"
#include "commands.hpp"
#include "files.hpp"
#include "work.hpp"

namespace {

using namespace tool;

void say(char const* what, totals const& t) {
  std::printf("%s: %lld tensors, %lld packed, %lld bytes to %lld (%.4f)\n", what, static_cast<long long>(t.tensors),
              static_cast<long long>(t.packed), static_cast<long long>(t.bytes_before), static_cast<long long>(t.bytes_after),
              static_cast<double>(t.bytes_after) / static_cast<double>(std::max<std::int64_t>(1, t.bytes_before)));
}

// step(file, output) for every file of a model, and the index behind them, as it is: files and tensors keep their names.
template <class Step>
void convert(char const* what, std::string const& from, std::string const& to, options const& with, Step step) {
  model_files const files = find_files(from);
  totals sum;
  if (!files.index.empty()) {
    check_index(files);
    make_folder(to);
  }
  for (std::string const& name : files.names) {
    bool const inside = !files.index.empty() || is_folder(to);
    totals const one = step(files.folder + name, inside ? to + "/" + name : to);
    sum = {sum.tensors + one.tensors, sum.packed + one.packed, sum.bytes_before + one.bytes_before, sum.bytes_after + one.bytes_after};
  }
  if (!files.index.empty()) write_text(to + "/" + files.index, read_text(files.folder + files.index), with.force);
  if (!with.quiet) say(what, sum);
}

int run(int argc, char** argv) {
  CLI::App app("Packs the tensors of safetensors files, gives them back, checks them and says what is in them.", "pith");
  app.require_subcommand(1);
  app.footer("exit codes: 0 done, 1 damaged or not valid, 2 command line, 3 input or output, 4 not known here, 128 + n signal n");
  options with;
  std::string from, to, folder = ".";
  bool decode = false;
  double gigabytes = 1;
  int count = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  auto add = [&](char const* name, char const* text) {
    CLI::App* const command = app.add_subcommand(name, text);
    command->add_option("-j,--threads", count, "threads")->check(CLI::Range(1, 1024))->capture_default_str();
    command->add_flag("-q,--quiet", with.quiet, "no progress, no summary");
    return command;
  };
  auto add_codec = [&](CLI::App* command) {
    command->add_option("-c,--codec", with.codec, "window, planes, huffman, rans: lossless; int8, int4: rounded")
        ->check(CLI::IsMember(std::vector<std::string>(codec_choices().begin(), codec_choices().end())))
        ->capture_default_str();
  };
  auto add_paths = [&](CLI::App* command) {
    command->add_option("input", from, "a safetensors file (convert: GGUF), an index of several, or a folder")->required();
    command->add_option("output", to, "a file, or a folder")->required();
    command->add_flag("-f,--force", with.force, "replace what is there");
  };
  CLI::App* const compress = add("compress", "pack the tensors of a model");
  add_paths(compress);
  add_codec(compress);
  CLI::App* const decompress = add("decompress", "give the model back");
  add_paths(decompress);
  CLI::App* const from_gguf = add("convert", "pack the tensors of a GGUF file, without rounding");
  add_paths(from_gguf);
  CLI::App* const verify = add("verify", "check every checksum");
  verify->add_option("input", from, "a packed file, an index of several, or a folder")->required();
  verify->add_flag("--decode", decode, "read the codes, too");
  CLI::App* const inspect = add("inspect", "say what is in a packed file");
  inspect->add_option("input", from, "a packed file, an index of several, or a folder")->required();
  CLI::App* const bench = add("bench", "time a model there and back");
  bench->add_option("input", from, "a safetensors file; without it one is made");
  bench->add_option("--gigabytes", gigabytes, "size of the one that is made")->check(CLI::Range(0.001, 1000.0))->capture_default_str();
  bench->add_option("--folder", folder, "where files are made and removed")->capture_default_str();
  add_codec(bench);
  try {
    app.parse(argc, argv);
  } catch (CLI::ParseError const& e) {
    return app.exit(e) == 0 ? done : bad_usage;
  }

  watch_signals();
  threads team(count);
  if (*compress)
    convert("compressed", from, to, with, [&](auto const& in, auto const& out) { return compress_file(in, out, with, team); });
  else if (*decompress)
    convert("decompressed", from, to, with, [&](auto const& in, auto const& out) { return decompress_file(in, out, with, team); });
  else if (*from_gguf) {
    totals const t = convert_file(from, to, with, team);
    if (!with.quiet) say("converted", t);
  } else if (*bench)
    return tool::bench(from, gigabytes, folder, with, team);
  else
    for (model_files const files = find_files(from); std::string const& name : files.names) {
      std::string const path = files.folder + name;
      if (*inspect)
        say("all", inspect_file(path));
      else if (totals const t = verify_file(path, decode, with, team); !with.quiet)
        std::printf("%s: %lld bytes of %lld tensors are as they were written\n", path.c_str(), static_cast<long long>(t.bytes_after),
                    static_cast<long long>(t.tensors));
    }
  return done;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (failure const& e) {
    std::fprintf(stderr, "pith: %s\n", e.what());
    return e.code();
  } catch (std::bad_alloc const&) {
    std::fprintf(stderr, "pith: out of memory\n");
    return bad_io;
  } catch (std::exception const& e) {
    std::fprintf(stderr, "pith: %s\n", e.what());
    return bad_io;
  }
}
