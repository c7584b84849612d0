// A stand-in for XLA's header: as much of its interface as the kernels use, over plain memory and threads.

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#define XLA_FFI_API_MAJOR 0
#define XLA_FFI_API_MINOR 0
#define XLA_FFI_DEFINE_HANDLER_SYMBOL(...)

namespace xla::ffi {

enum class DataType { F32, BF16, S8, U8, S32 };

class Error {
 public:
  static Error Success() { return {}; }
  static Error InvalidArgument(std::string why) { return Error{std::move(why)}; }
  bool failure() const { return !why.empty(); }
  std::string why;
};

template <typename T>
struct Span {
  const T* data = nullptr;
  size_t count = 0;
  size_t size() const { return count; }
  const T* begin() const { return data; }
  const T* end() const { return data + count; }
  const T& operator[](size_t i) const { return data[i]; }
  const T& back() const { return data[count - 1]; }
};

struct AnyBuffer {
  void* data = nullptr;
  DataType type = DataType::F32;
  std::vector<int64_t> shape;
  void* untyped_data() const { return data; }
  DataType element_type() const { return type; }
  Span<int64_t> dimensions() const { return {shape.data(), shape.size()}; }
  size_t element_count() const {
    size_t n = 1;
    for (const int64_t x : shape) n *= static_cast<size_t>(x);
    return n;
  }
};

template <DataType>
struct Buffer : AnyBuffer {
  float* typed_data() const { return static_cast<float*>(data); }
};

constexpr DataType F32 = DataType::F32;
template <DataType type>
using BufferR1 = Buffer<type>;
template <DataType type>
using BufferR2 = Buffer<type>;

template <typename T>
struct Result {
  T* buffer;
  T* operator->() const { return buffer; }
  T& operator*() const { return *buffer; }
};

struct RemainingArgs {
  std::vector<AnyBuffer>* all;
  size_t size() const { return all->size(); }
  template <typename T>
  std::optional<T> get(size_t i) const { return all->at(i); }
};

struct RemainingRets {
  std::vector<AnyBuffer>* all;
  size_t size() const { return all->size(); }
  template <typename T>
  std::optional<Result<T>> get(size_t i) const { return Result<T>{&all->at(i)}; }
};

// Every task on a thread of its own, which may begin long after the caller has returned.
class ThreadPool {
 public:
  ThreadPool(int64_t n, std::vector<std::thread>* threads) : n_(n), threads_(threads) {}
  int64_t num_threads() const { return n_; }
  void Schedule(std::function<void()> f) { threads_->emplace_back(std::move(f)); }

 private:
  int64_t n_;
  std::vector<std::thread>* threads_;
};

}  // namespace xla::ffi
