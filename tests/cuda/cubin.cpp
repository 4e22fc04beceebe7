// SPDX-License-Identifier: Apache-2.0
// Reads a cubin, without the toolkit's disassembler: what each kernel needs, and its instructions by kind, in all and in its innermost
// loops. Instructions are 16 bytes; the low 12 bits are the operation and its operand form. Known for sm_80 to sm_90; a number is shown
// where the table below has no name.
//
//   pith_cubin FILE                                      prints it
//   pith_cubin FILE --check CEILINGS COMPOSITION ROW     fails on a stack frame, on local memory, and on what is above a line of CEILINGS
//                                                        (its head says how it is read); writes one line for each kernel to ROW
//
// Exit status 0: as it should be. 1: something is above its ceiling. 2: the files cannot be read.
#include <cxxabi.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace {

using counts = std::map<std::string, int>;

struct loop {
  std::int64_t head = 0;  // byte offset
  int instructions = 0;
  counts kinds;
};
struct kernel {
  std::string name;
  std::int64_t registers = -1, frame_bytes = -1, shared_bytes = 0;
  int instructions = 0;
  counts kinds;
  std::vector<loop> loops;  // innermost ones, longest first
};

[[noreturn]] void stop(std::string const& why) {
  std::fprintf(stderr, "pith_cubin: %s\n", why.c_str());
  std::exit(2);
}

struct reader {
  std::vector<unsigned char> bytes;

  template <class T>
  T at(std::uint64_t offset) const {
    if (offset > bytes.size() || sizeof(T) > bytes.size() - offset) stop("the file ends too early");
    T x;
    std::memcpy(&x, bytes.data() + offset, sizeof x);
    return x;
  }
  std::string text(std::uint64_t offset) const {
    std::string out;
    while (at<char>(offset) != 0) out += at<char>(offset++);
    return out;
  }
};

// Arithmetic is named by its low 8 bits, whatever the operands are: there the four bits above are 2 to e. Of the rest the whole number
// counts.
struct operation {
  unsigned number;
  char const* name;
};
// clang-format off
constexpr operation arithmetic[] = {
    {0x02, "MOV"}, {0x03, "P2R"}, {0x07, "SEL"}, {0x08, "FSEL"}, {0x09, "FMNMX"}, {0x0b, "FSETP"}, {0x0c, "ISETP"}, {0x10, "IADD3"},
    {0x11, "LEA"}, {0x12, "LOP3"}, {0x16, "PRMT"}, {0x17, "IMNMX"}, {0x19, "SHF"}, {0x1c, "PLOP3"}, {0x20, "FMUL"}, {0x21, "FADD"},
    {0x23, "FFMA"}, {0x24, "IMAD"}, {0x25, "IMAD"}, {0x26, "IDP"}, {0x30, "HADD2"}, {0x31, "HFMA2"}, {0x32, "HMUL2"}, {0x35, "HFMA2"},
    {0x36, "VIADD"}, {0x37, "IMMA"}, {0x3a, "MOVM"}, {0x3c, "HMMA"}, {0x3e, "F2FP"}, {0x45, "I2FP"}, {0x82, "UMOV"}, {0x8c, "UISETP"},
    {0x90, "UIADD3"}, {0x91, "ULEA"}, {0x92, "ULOP3"}, {0x99, "USHF"}, {0xa4, "UIMAD"}, {0xa5, "UIMAD"},
};
constexpr operation others[] = {
    {0x304, "F2F"}, {0x305, "F2I"}, {0x306, "I2F"}, {0x307, "FRND"}, {0x308, "MUFU"}, {0x309, "POPC"}, {0x348, "WARPSYNC"},
    {0x387, "STL"}, {0x388, "STS"}, {0x389, "SHFL"}, {0x3a9, "ATOMG"}, {0x3ba, "UBLKCP"}, {0x589, "SHFL"}, {0x805, "CS2R"},
    {0x806, "VOTE"}, {0x83b, "LDSM"}, {0x908, "MUFU"}, {0x918, "NOP"}, {0x919, "S2R"}, {0x91a, "DEPBAR"}, {0x91b, "ENDCOLLECTIVE"},
    {0x941, "BSYNC"}, {0x944, "CALL"}, {0x945, "BSSY"}, {0x947, "BRA"}, {0x948, "WARPSYNC"}, {0x949, "BRX"},
    {0x94d, "EXIT"}, {0x950, "RET"}, {0x981, "LDG"}, {0x983, "LDL"}, {0x984, "LDS"}, {0x986, "STG"}, {0x987, "STL"}, {0x988, "STS"},
    {0x989, "SHFL"}, {0x9af, "LDGDEPBAR"}, {0x9c3, "S2UR"}, {0xab9, "ULDC"}, {0xb1d, "BAR"}, {0xb82, "LDC"}, {0xf89, "SHFL"},
    {0xfae, "LDGSTS"},
};
// clang-format on

char const* known_name(unsigned op) {
  for (operation const& o : others)
    if (o.number == op) return o.name;
  if (unsigned const form = op >> 8; form >= 2 && form <= 14)
    for (operation const& o : arithmetic)
      if (o.number == (op & 0xff)) return o.name;
  return nullptr;
}
std::string kind_of(std::uint64_t low) {
  auto const op = static_cast<unsigned>(low & 0xfff);
  if (char const* name = known_name(op)) return name;
  char text[8];
  std::snprintf(text, sizeof text, "%03x", op);
  return text;
}

struct instruction {
  std::string kind;
  bool conditional = false;  // has a predicate
  std::int64_t target = -1;  // of a BRA or CALL, as an index
};

std::vector<instruction> decode(reader const& file, std::uint64_t offset, std::uint64_t bytes, int arch) {
  std::vector<instruction> out;
  for (std::uint64_t at = 0; at + 16 <= bytes; at += 16) {
    auto const low = file.at<std::uint64_t>(offset + at), high = file.at<std::uint64_t>(offset + at + 8);
    instruction i;
    i.kind = kind_of(low);
    i.conditional = (low >> 12 & 15) != 7 || (high >> 23 & 15) != 7;
    if (i.kind == "BRA" || i.kind == "CALL") {  // a far jump is a call that does not come back: both ways are open
      // In units of 4 bytes from bit 34 on, from sm_90 on with 8 more low bits at bit 16. Bits 32 and 33 make it depend on the other lanes.
      std::int64_t const upper = static_cast<std::int64_t>(low) >> 34;
      std::int64_t const distance = 4 * (arch >= 90 ? upper * 256 + static_cast<std::int64_t>(low >> 16 & 255) : upper);
      i.conditional = i.conditional || (low >> 32 & 3) != 0;
      std::int64_t const to = static_cast<std::int64_t>(at) + 16 + distance;
      if (to < 0 || to >= static_cast<std::int64_t>(bytes) || to % 16 != 0)
        stop("a branch that leaves its kernel: not an encoding known here");
      i.target = to / 16;
    }
    out.push_back(i);
  }
  return out;
}

// Natural loops: an edge to a block that dominates its source, and the blocks that reach the source without passing that one. Of loops with
// one head there is one, the union. Innermost are those that hold no other head.
std::vector<std::pair<std::size_t, std::set<std::size_t>>> innermost_loops(std::vector<instruction> const& code) {
  std::size_t const n = code.size();
  std::vector<std::vector<std::size_t>> next(n), previous(n);
  for (std::size_t i = 0; i < n; ++i) {
    if (code[i].target >= 0) next[i].push_back(static_cast<std::size_t>(code[i].target));
    bool const ends = !code[i].conditional && (code[i].kind == "BRA" || code[i].kind == "EXIT" || code[i].kind == "RET");
    if (!ends && i + 1 < n) next[i].push_back(i + 1);
    for (std::size_t const to : next[i]) previous[to].push_back(i);
  }
  // Immediate dominators over a reverse post-order (Cooper, Harvey and Kennedy).
  std::vector<std::size_t> order, number(n, n), dominator(n, n);
  std::vector<std::pair<std::size_t, std::size_t>> stack{{0, 0}};
  std::vector<bool> seen(n, false);
  if (n != 0) seen[0] = true;
  while (n != 0 && !stack.empty()) {
    auto& [at, branch] = stack.back();
    if (branch < next[at].size()) {
      std::size_t const to = next[at][branch++];
      if (!seen[to]) seen[to] = true, stack.push_back({to, 0});
    } else {
      order.push_back(at);
      stack.pop_back();
    }
  }
  std::reverse(order.begin(), order.end());
  for (std::size_t i = 0; i < order.size(); ++i) number[order[i]] = i;
  if (n != 0) dominator[0] = 0;
  for (bool changed = n != 0; changed;) {
    changed = false;
    for (std::size_t const at : order) {
      if (at == 0) continue;
      std::size_t found = n;
      for (std::size_t p : previous[at]) {
        if (number[p] == n || dominator[p] == n) continue;
        std::size_t q = found;
        if (q == n) {
          found = p;
          continue;
        }
        while (p != q) {
          while (number[p] > number[q]) p = dominator[p];
          while (number[q] > number[p]) q = dominator[q];
        }
        found = p;
      }
      if (dominator[at] != found) dominator[at] = found, changed = true;
    }
  }
  std::map<std::size_t, std::set<std::size_t>> loops;
  for (std::size_t const from : order)
    for (std::size_t const head : next[from]) {
      if (head == from) continue;  // the guard behind the end of every kernel
      std::size_t d = from;
      while (d != head && d != 0) d = dominator[d];
      if (d != head) continue;
      std::set<std::size_t>& body = loops[head];
      body.insert(head);
      std::vector<std::size_t> todo{from};
      while (!todo.empty()) {
        std::size_t const i = todo.back();
        todo.pop_back();
        if (!body.insert(i).second) continue;
        for (std::size_t const p : previous[i])
          if (number[p] != n) todo.push_back(p);
      }
    }
  std::vector<std::pair<std::size_t, std::set<std::size_t>>> out;
  for (auto const& [head, body] : loops) {
    bool const inner =
        std::none_of(loops.begin(), loops.end(), [&](auto const& other) { return other.first != head && body.count(other.first) != 0; });
    if (inner) out.push_back({head, body});
  }
  return out;
}

std::vector<kernel> read_cubin(char const* path) {
  std::ifstream in(path, std::ios::binary);
  reader file{{std::istreambuf_iterator<char>(in), {}}};
  if (file.bytes.size() < 64 || std::memcmp(file.bytes.data(), "\177ELF\2\1", 6) != 0) stop(std::string(path) + " is no cubin");
  struct section {
    std::string name;
    std::uint64_t offset, bytes;
    std::uint32_t type, info;
  };
  std::vector<section> sections;
  auto const first = file.at<std::uint64_t>(0x28);
  auto const count = file.at<std::uint16_t>(0x3c), names = file.at<std::uint16_t>(0x3e);
  auto const name_at = file.at<std::uint64_t>(first + 64ull * names + 24);
  for (unsigned i = 0; i < count; ++i) {
    std::uint64_t const at = first + 64ull * i;
    sections.push_back({file.text(name_at + file.at<std::uint32_t>(at)), file.at<std::uint64_t>(at + 24), file.at<std::uint64_t>(at + 32),
                        file.at<std::uint32_t>(at + 4), file.at<std::uint32_t>(at + 44)});
  }
  auto const find = [&](std::string const& name) -> section const* {
    auto const it = std::find_if(sections.begin(), sections.end(), [&](section const& s) { return s.name == name; });
    return it == sections.end() ? nullptr : &*it;
  };
  // e_flags: the architecture is in the low byte, in files of the newer ABI (8) in the next one.
  auto const flags = file.at<std::uint32_t>(0x30);
  int const arch = static_cast<int>(file.bytes[8] >= 8 ? flags >> 8 & 255 : flags & 255);

  std::vector<std::string> symbols;
  if (section const* s = find(".symtab"); s != nullptr && find(".strtab") != nullptr)
    for (std::uint64_t at = 0; at + 24 <= s->bytes; at += 24)
      symbols.push_back(file.text(find(".strtab")->offset + file.at<std::uint32_t>(s->offset + at)));
  std::map<std::string, std::int64_t> registers, frames;
  if (section const* s = find(".nv.info"))
    for (std::uint64_t at = s->offset; at + 4 <= s->offset + s->bytes;) {
      unsigned const form = file.bytes[at], what = file.bytes[at + 1];
      auto const size = form == 4 ? file.at<std::uint16_t>(at + 2) : std::uint16_t{0};
      if (form == 4 && size == 8 && (what == 0x2f || what == 0x11)) {
        auto const symbol = file.at<std::uint32_t>(at + 4);
        if (symbol < symbols.size()) (what == 0x2f ? registers : frames)[symbols[symbol]] = file.at<std::uint32_t>(at + 8);
      }
      at += 4u + size;
    }

  std::vector<kernel> out;
  for (section const& s : sections) {
    if (s.name.rfind(".text.", 0) != 0) continue;
    std::string const symbol = s.name.substr(6);
    kernel k;
    int state = 0;
    char* const plain = abi::__cxa_demangle(symbol.c_str(), nullptr, nullptr, &state);
    k.name = state == 0 ? plain : symbol;
    std::free(plain);
    std::string const wrapper = "void pith::device::run_kernel<";  // name the kernel object alone
    if (k.name.rfind(wrapper, 0) == 0 && k.name.rfind(">(") != std::string::npos)
      k.name = k.name.substr(wrapper.size(), k.name.rfind(">(") - wrapper.size());
    while (!k.name.empty() && k.name.back() == ' ') k.name.pop_back();
    if (registers.count(symbol) != 0) k.registers = registers[symbol];
    if (frames.count(symbol) != 0) k.frame_bytes = frames[symbol];
    if (section const* shared = find(".nv.shared." + symbol)) k.shared_bytes = static_cast<std::int64_t>(shared->bytes);
    auto const code = decode(file, s.offset, s.bytes, arch);
    std::size_t end = code.size();  // padding: NOPs behind a branch to itself
    while (end > 0 && code[end - 1].kind == "NOP") --end;
    if (end > 0 && code[end - 1].target == static_cast<std::int64_t>(end) - 1) --end;
    for (std::size_t i = 0; i < end; ++i) ++k.kinds[code[i].kind], ++k.instructions;
    for (auto const& [head, body] : innermost_loops(code)) {
      loop l;
      l.head = static_cast<std::int64_t>(head) * 16;
      for (std::size_t const i : body) ++l.kinds[code[i].kind], ++l.instructions;
      k.loops.push_back(l);
    }
    std::stable_sort(k.loops.begin(), k.loops.end(), [](loop const& a, loop const& b) { return a.instructions > b.instructions; });
    out.push_back(k);
  }
  return out;
}

std::string listed(counts const& kinds) {
  std::vector<std::pair<int, std::string>> order;
  for (auto const& [kind, count] : kinds) order.push_back({-count, kind});
  std::sort(order.begin(), order.end());
  std::string out;
  for (auto const& [count, kind] : order) out += " " + kind + " " + std::to_string(-count);
  return out;
}

void print(std::vector<kernel> const& kernels) {
  for (kernel const& k : kernels) {
    std::printf("%s\n  registers %lld, stack frame %lld, static shared %lld\n  all: %d =%s\n", k.name.c_str(),
                static_cast<long long>(k.registers), static_cast<long long>(k.frame_bytes), static_cast<long long>(k.shared_bytes),
                k.instructions, listed(k.kinds).c_str());
    for (loop const& l : k.loops)
      std::printf("  innermost loop at 0x%llx: %d =%s\n", static_cast<unsigned long long>(l.head), l.instructions, listed(l.kinds).c_str());
  }
}

int check(std::vector<kernel> const& kernels, char const* ceilings, std::string const& composition, char const* row_path) {
  int wrong = 0;
  auto const complain = [&](kernel const& k, std::string const& what) {
    std::printf("ABOVE: %s: %s: %s\n", composition.c_str(), k.name.c_str(), what.c_str());
    ++wrong;
  };
  if (kernels.empty()) stop(composition + " holds no kernel");
  std::string rows;
  for (kernel const& k : kernels) {
    auto const count = [&](char const* kind) { return k.kinds.count(kind) != 0 ? k.kinds.at(kind) : 0; };
    if (k.registers < 0 || k.frame_bytes < 0) stop("no register count or stack frame in the file");
    if (k.frame_bytes != 0)
      complain(k, "a stack frame of " + std::to_string(k.frame_bytes) + " bytes: registers spill, or an array is indexed by a variable");
    if (int const local = count("LDL") + count("STL"); local != 0) complain(k, std::to_string(local) + " accesses of local memory");
    rows += composition + "\t" + k.name + "\t" + std::to_string(k.registers) + "\t" + std::to_string(k.shared_bytes) + "\t" +
            std::to_string(k.instructions) + "\t" + (k.loops.empty() ? "-" : std::to_string(k.loops.front().instructions)) + "\n";
  }
  std::ifstream in(ceilings);
  if (!in) stop(std::string(ceilings) + " cannot be read");
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    std::string whose, name, what;
    if (!(words >> whose) || whose[0] == '#' || whose != composition) continue;
    words >> name >> what;
    bool const of_loop = what == "loop" || what.rfind("loop:", 0) == 0;
    std::string const wanted = of_loop && what.size() > 5 ? what.substr(5) : "";
    std::string unwanted;
    double codes = 0, most = 0;
    if (what == "without")
      words >> unwanted;
    else if (what == "registers")
      words >> most, codes = 1;
    else if (of_loop || what == "all")
      words >> codes >> most;
    if (!words || (unwanted.empty() && codes <= 0)) stop("a line of the ceilings that cannot be read: " + line);
    int matched = 0;
    for (kernel const& k : kernels) {
      if (name != "*" && k.name.find(name) == std::string::npos) continue;
      ++matched;
      if (what == "without") {
        if (k.kinds.count(unwanted) != 0) complain(k, std::to_string(k.kinds.at(unwanted)) + " times " + unwanted);
        continue;
      }
      double value = static_cast<double>(what == "registers" ? k.registers : k.instructions);
      if (of_loop) {
        auto const longest =
            std::find_if(k.loops.begin(), k.loops.end(), [&](loop const& l) { return wanted.empty() || l.kinds.count(wanted) != 0; });
        if (longest == k.loops.end()) {
          complain(k, "no innermost loop with " + wanted);
          continue;
        }
        value = longest->instructions;
      }
      value /= codes;
      std::printf("%s: %s: %s %.3f of at most %.3f\n", composition.c_str(), k.name.c_str(), what.c_str(), value, most);
      if (value > most) complain(k, line);
    }
    if (matched == 0) stop("no kernel is named like in: " + line);
  }
  std::ofstream(row_path) << rows;
  if (wrong != 0) print(kernels);
  return wrong != 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2) {
    print(read_cubin(argv[1]));
    return 0;
  }
  if (argc == 6 && std::string(argv[2]) == "--check") return check(read_cubin(argv[1]), argv[3], argv[4], argv[5]);
  std::fprintf(stderr, "usage: pith_cubin FILE [--check CEILINGS COMPOSITION ROW]\n");
  return 2;
}
