// Memory that is kept and grows, beginning at a cache line: what crosses lines takes twice as long to read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace octavo {

class Buffer {
 public:
  // Room for `count` of them, with anything in it.
  template <class T>
  T* of(int64_t count) {
    int64_t bytes = count * int64_t(sizeof(T));
    if (bytes > bytes_) {
      memory_.reset();
      bytes_ = 0;  // should there be no memory
      memory_.reset(static_cast<std::byte*>(operator new(bytes, LINE)));
      bytes_ = bytes;
    }
    return reinterpret_cast<T*>(memory_.get());
  }

 private:
  static constexpr std::align_val_t LINE{64};
  struct Free {
    void operator()(std::byte* memory) const { operator delete(memory, LINE); }
  };

  std::unique_ptr<std::byte, Free> memory_;
  int64_t bytes_ = 0;
};

}  // namespace octavo
