// Runs random programs through the kernels, for the sanitizers of the compiler: `driver SEED COUNT`.
//
// Each has random operations, kinds of slots, sizes, codes and numbers, also infinite ones and NaN, in arrays that end
// where they should. It is run on one thread and on three, which must give the same bits; every fourth has an
// argument that does not fit, which must be refused. Ends with an error at the first that is otherwise.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>

#include "step.cc"
#include "newton_schulz.cc"

namespace functional_opt {
namespace {

using ffi::AnyBuffer;
using ffi::DataType;

constexpr int SCALARS[OPS] = {1, 1, 1, 1, 1, 9, 9, 11, 9, 9, 9, 9, 6, 11, 12, 8, 4, 4, 4, 1, 1, 3, 2, 2, 6, 1, 1, 1};
constexpr DataType TYPES[KINDS] = {DataType::F32, DataType::BF16, DataType::S8, DataType::U8,
                                   DataType::S8, DataType::U8, DataType::U8, DataType::U8};

[[noreturn]] void fail(const char* why, uint64_t seed) {
  std::fprintf(stderr, "program %llu: %s\n", static_cast<unsigned long long>(seed), why);
  std::exit(1);
}

struct Random {
  std::mt19937_64 bits;
  explicit Random(uint64_t seed) : bits(seed) {}
  int64_t below(int64_t n) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(n)); }
  bool one_in(int64_t n) { return below(n) == 0; }
  float number() {
    static constexpr float ODD[] = {0.0f, -0.0f, 1e30f, -1e30f, 1e-40f, std::numeric_limits<float>::infinity(),
                                    -std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN(),
                                    -std::numeric_limits<float>::quiet_NaN()};
    if (one_in(40)) return ODD[below(9)];
    const float unit = one_in(2) ? 1e-3f : 1e-6f;  // on lines of their own, as compilers take operands in any order
    return static_cast<float>(below(2001) - 1000) * unit;
  }
};

// Arrays in memory of their own, of exactly the size that they need.
struct Arrays {
  std::vector<std::vector<uint8_t>> memory;
  std::vector<AnyBuffer> buffers;

  void add(DataType type, std::vector<int64_t> shape, Random& random) {
    AnyBuffer x{nullptr, type, std::move(shape)};
    const size_t n = x.element_count(), width = static_cast<size_t>(functional_opt::width(type) / 8);
    std::vector<uint8_t> bytes(n * width);
    for (size_t i = 0; i < n; ++i) {
      const float number = random.number();
      const uint16_t half = rounded(number);
      const uint8_t code = static_cast<uint8_t>(random.below(256));
      std::memcpy(bytes.data() + i * width,
                  type == DataType::F32 ? static_cast<const void*>(&number) : type == DataType::BF16 ? static_cast<const void*>(&half) : &code, width);
    }
    memory.push_back(std::move(bytes));
    buffers.push_back(std::move(x));
    place();
  }
  void place() {
    for (size_t i = 0; i < buffers.size(); ++i) buffers[i].data = memory[i].data();
  }
};

struct Case {
  std::vector<int32_t> code, kinds;
  size_t leaves = 0, coded = 0;
  Arrays scalars, args, updates;

  bool adds() const { return code[code.size() - 2] == ADD; }

  explicit Case(Random& random) {
    int32_t at = 0;
    const auto put = [&](int32_t op) { code.insert(code.end(), {op, at}), at += SCALARS[op]; };
    size_t slots = 0;
    const bool usual = random.one_in(3), full = random.one_in(3);
    if (usual) {
      if (random.one_in(2)) put(SCALE);
      if (!random.one_in(6)) put(static_cast<int32_t>(TRACE + random.below(ADD - TRACE)));
      if (random.one_in(2)) put(DECAY);
      for (size_t i = 0; i < code.size(); i += 2) slots += static_cast<size_t>(slots_of(code[i]));
    } else {
      for (int64_t k = random.below(7); k > 0 || (full && slots < MAX_SLOTS); --k) {
        const int32_t op = static_cast<int32_t>(random.below(ADD)), more = slots_of(op);
        if (slots + static_cast<size_t>(more) > MAX_SLOTS) continue;
        put(op);
        slots += static_cast<size_t>(more);
      }
      if (full) put(random.one_in(2) ? CLIP : SCALE);  // a rule without slots after all that there may be
    }
    put(random.one_in(2) ? ADD : UPDATE);
    scalars.add(DataType::F32, {at}, random);
    for (size_t i = 0; i < code.size(); i += 2)
      if (code[i] == GATE || code[i] == ACCUMULATE) {  // flags: the gate's, and the last of what is accumulated
        const float flag = random.one_in(2) ? 1.0f : 0.0f;
        const size_t at = static_cast<size_t>(code[i + 1] + SCALARS[code[i]] - 1);
        std::memcpy(scalars.memory[0].data() + at * sizeof(float), &flag, sizeof(float));
      }
    const bool codes = random.one_in(2);
    for (size_t k = 0; k < slots; ++k) kinds.push_back(static_cast<int32_t>(random.below(codes ? KINDS : 2)));
    for (const int32_t kind : kinds) coded += kind >= INT8;
    leaves = static_cast<size_t>(random.below(5));
    std::vector<std::vector<int64_t>> shapes, scales;
    for (size_t i = 0; i < leaves; ++i) {
      int64_t rows = 2 * random.below(random.one_in(4) ? 40 : 4), row, in_row;
      do {
        row = 1 + random.below(random.one_in(2) ? 1500 : 20);
        in_row = 1 + random.below(row);
        if (random.one_in(3)) row = 32 * in_row;  // as in the usual blocks of companded codes
      } while ((row + in_row - 1) / in_row > BLOCK || (row + (row + in_row - 1) / in_row - 1) / ((row + in_row - 1) / in_row) != in_row);
      shapes.push_back({rows, row});
      scales.push_back({rows, in_row});
    }
    const DataType grad = TYPES[random.below(2)], param = TYPES[random.below(2)];
    for (const auto& shape : shapes) args.add(grad, shape, random);
    for (const auto& shape : shapes) args.add(param, shape, random);
    for (const int32_t kind : kinds)
      for (const auto& shape : shapes)
        args.add(TYPES[kind], {kind >= INT4 ? shape[0] / 2 : shape[0], shape[1]}, random);
    for (size_t k = 0; k < coded; ++k)
      for (const auto& shape : scales) args.add(DataType::F32, shape, random);
    for (const auto& shape : shapes) updates.add(param, shape, random);
  }

  ffi::Error run(int64_t threads) {
    for (Arrays* x : {&scalars, &args, &updates}) x->place();
    std::vector<AnyBuffer> results(args.buffers.begin() + static_cast<int64_t>(leaves), args.buffers.end());
    if (!adds()) std::copy(updates.buffers.begin(), updates.buffers.end(), results.begin());
    std::vector<std::thread> started;
    const auto error = step({threads, &started}, {code.data(), code.size()}, {kinds.data(), kinds.size()},
                            scalars.buffers[0], {&args.buffers}, {&results});
    for (auto& thread : started) thread.join();
    return error;
  }

  // One argument is made to be of another size, block, dtype or number; false where this one has none to change.
  bool spoil(Random& random) {
    if (!leaves || !args.buffers[0].element_count()) return false;
    const int64_t way = coded && random.one_in(2) ? 4 + random.below(2) : random.below(4);
    switch (way) {
      case 0: code[0] = static_cast<int32_t>(OPS + random.below(3)); return true;
      case 1: kinds.push_back(FLOAT32); return true;
      case 2: args.buffers[leaves].shape[0] += 2; return true;
      case 3:
        if (kinds.empty()) return false;
        args.buffers[2 * leaves].shape[1] -= 1;
        return true;
      case 4:  // scales of several shapes
        if (coded < 2) return false;
        args.buffers[args.buffers.size() - leaves].shape.back() += 1;
        return true;
      default:  // blocks that are larger than what they are worked on in
        if (!coded || args.buffers[0].shape[1] <= BLOCK) return false;
        for (size_t k = 0; k < coded; ++k) args.buffers[args.buffers.size() - (k + 1) * leaves].shape.back() = 1;
        return true;
    }
  }
};

// A digest of all results, to compare the processors and compilers that this is built for. NaN has many bits.
uint64_t digest = 14695981039346656037u;

void include(const Arrays& arrays) {
  for (size_t i = 0; i < arrays.buffers.size(); ++i) {
    const std::vector<uint8_t>& bytes = arrays.memory[i];
    const size_t width = arrays.buffers[i].type == DataType::F32 ? 4 : arrays.buffers[i].type == DataType::BF16 ? 2 : 1;
    for (size_t k = 0; k < bytes.size(); k += width) {
      uint32_t bits = 0;
      std::memcpy(&bits, bytes.data() + k, width);
      const uint32_t sign = width == 4 ? 0x80000000u : 0x8000u, infinity = width == 4 ? 0x7f800000u : 0x7f80u;
      if (width > 1 && (bits & ~sign) > infinity) bits = infinity + 1;
      digest = (digest ^ bits) * 1099511628211u;
    }
  }
}

void run_step(uint64_t seed) {
  Random random(seed);
  Case one(random);
  if (seed % 4 == 3 && one.spoil(random)) {
    if (!one.run(3).failure()) fail("arguments that do not fit are not refused", seed);
    return;
  }
  Case three = one;
  const auto error = one.run(1);
  if (error.failure()) fail(error.why.c_str(), seed);
  three.run(3);
  if (one.args.memory != three.args.memory || one.updates.memory != three.updates.memory)
    fail("other numbers on three threads", seed);
  include(one.args);
  include(one.updates);
}

void run_sums(uint64_t seed) {
  Random random(seed);
  Arrays scalars, args, sums;
  const size_t n = static_cast<size_t>(random.below(5));
  const bool accumulates = random.one_in(2);
  scalars.add(DataType::F32, {accumulates ? SCALARS[ACCUMULATE] : 0}, random);
  for (size_t i = 0; i < n; ++i) {
    const DataType type = TYPES[random.below(2)];
    args.add(type, {random.below(random.one_in(3) ? 90000 : 700)}, random);
  }
  for (size_t i = 0; i < n && accumulates; ++i) args.add(DataType::F32, args.buffers[i].shape, random);
  sums.add(DataType::F32, {static_cast<int64_t>(n)}, random);
  ffi::Buffer<DataType::F32> given{scalars.buffers[0]}, result{sums.buffers[0]};
  std::vector<std::thread> started;
  if (sums_of_squares({2, &started}, given, {&args.buffers}, {&result}).failure()) fail("sums of squares", seed);
  for (auto& thread : started) thread.join();
  include(sums);
  if (!n) return;
  args.buffers[seed % n].shape[0] += 1;  // too many elements for its slot; without slots, one argument too many
  if (!accumulates) args.buffers.push_back(args.buffers[0]);
  if (!sums_of_squares({2, &started}, given, {&args.buffers}, {&result}).failure())
    fail("arguments of sums that do not fit are not refused", seed);
}

void run_newton_schulz(uint64_t seed) {
  Random random(seed);
  const int64_t n = 1 + random.below(40);
  const int64_t m = n + random.below(40);
  Arrays args;
  const int64_t matrices = random.below(4), steps = random.below(5);
  args.add(DataType::F32, {matrices, n, m}, random);
  args.add(DataType::F32, {steps, 3}, random);
  ffi::Buffer<DataType::F32> x{args.buffers[0]}, coefficients{args.buffers[1]};
  std::vector<std::thread> started;
  if (newton_schulz({2, &started}, x, coefficients, {&x}, random.one_in(2)).failure()) fail("newton_schulz", seed);
  for (auto& thread : started) thread.join();
  include(args);
}

}  // namespace
}  // namespace functional_opt

int main(int argc, char** argv) {
  if (argc != 3) return std::fprintf(stderr, "usage: %s SEED COUNT\n", argv[0]), 2;
  const uint64_t seed = std::strtoull(argv[1], nullptr, 10), count = std::strtoull(argv[2], nullptr, 10);
  for (uint64_t i = seed; i < seed + count; ++i) {
    functional_opt::run_step(i);
    if (i % 8 == 0) functional_opt::run_sums(i);
    if (i % 8 == 4) functional_opt::run_newton_schulz(i);
  }
  std::printf("%llu programs from seed %llu, on one thread and three: the same bits, nothing found; digest %016llx\n",
              static_cast<unsigned long long>(count), static_cast<unsigned long long>(seed),
              static_cast<unsigned long long>(functional_opt::digest));
}
