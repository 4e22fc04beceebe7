// SPDX-License-Identifier: Apache-2.0
// What a call returns when data, sizes or resources may be wrong: a code and a position. Nothing in Pith throws or prints.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>
#include <utility>

#include "config.hpp"

namespace pith {

enum class errc : std::uint8_t {
  ok,
  truncated,          // fewer bytes than the format needs
  bad_format,         // bytes that the format forbids
  shape_mismatch,     // extents that do not fit each other or the composition
  out_of_range,       // an index past its end
  capacity_exceeded,  // no free block, run, sequence or room for a token; nothing was changed
  stale_handle,       // a sequence that was closed, or that belongs to another cache
  not_finite,         // NaN or infinity under nan_policy::reject
  bad_calibration,    // calibrated numbers that are no permutation, scale or rotation; `at` is the first wrong one
  wrong_format,       // bytes of another format or of other calibrated numbers than this one's
  misaligned,         // an address or stride that the layout does not allow
  unsupported,        // a combination that was not compiled or does not exist
  out_of_memory,      // the arena could not be obtained
  device_error,       // the device's runtime refused a call, or work on it failed; `at` is the runtime's own number of the error
  damaged,            // bytes whose checksum is not the stored one; `at` is the first of them
  io_error,           // the system refused a read or a write; `at` is its number of the error
};

PITH_HD constexpr char const* message(errc code) noexcept {
  switch (code) {
    case errc::ok: return "ok";
    case errc::truncated: return "truncated";
    case errc::bad_format: return "bad format";
    case errc::shape_mismatch: return "shape mismatch";
    case errc::out_of_range: return "out of range";
    case errc::capacity_exceeded: return "capacity exceeded";
    case errc::stale_handle: return "stale handle";
    case errc::not_finite: return "not finite";
    case errc::bad_calibration: return "bad calibration";
    case errc::wrong_format: return "another format or calibration";
    case errc::misaligned: return "misaligned";
    case errc::unsupported: return "unsupported";
    case errc::out_of_memory: return "out of memory";
    case errc::device_error: return "device error";
    case errc::damaged: return "damaged: the checksum is another";
    case errc::io_error: return "input or output error";
  }
  return "unknown";
}

// Success or an error code with the position it belongs to: a byte offset (readers), a token or slot (caches), an argument's
// extent (shapes), the number of blocks that were wanted (capacity).
struct [[nodiscard]] status {
  errc code = errc::ok;
  std::int64_t at = 0;

  PITH_HD constexpr explicit operator bool() const noexcept { return code == errc::ok; }
  PITH_HD friend constexpr bool operator==(status const&, status const&) noexcept = default;
};

// A value or the status that says why there is none. value() of an error is a precondition slip.
template <class T>
class [[nodiscard]] result {
 public:
  PITH_HD constexpr result(T value) noexcept requires std::is_trivially_copyable_v<T> : value_(value) {}
  constexpr result(T value) noexcept(std::is_nothrow_move_constructible_v<T>) requires(!std::is_trivially_copyable_v<T>)  // on the host only
      : value_(std::move(value)) {}
  PITH_HD constexpr result(status error) noexcept : error_(error), ok_(false) { PITH_EXPECTS(error.code != errc::ok); }

  // Trivial if T is trivially copyable; otherwise the union deletes these two, and the next one moves. (g++ 12 does not see
  // a result as trivially copyable if its only move constructor is constrained away.)
  result(result const&) = default;
  result(result&&) = default;
  constexpr result(result&& other) noexcept requires(!std::is_trivially_copyable_v<T>) : ok_(other.ok_) {
    if (ok_)
      std::construct_at(&value_, std::move(other.value_));
    else
      error_ = other.error_;
  }
  result& operator=(result const&) = delete;
  ~result() requires std::is_trivially_destructible_v<T> = default;
  constexpr ~result() requires(!std::is_trivially_destructible_v<T>) {
    if (ok_) value_.~T();
  }

  PITH_HD constexpr explicit operator bool() const noexcept { return ok_; }
  PITH_HD constexpr pith::status error() const noexcept { return ok_ ? pith::status{} : error_; }
  PITH_HD constexpr T& value() & noexcept {
    PITH_EXPECTS(ok_);
    return value_;
  }
  PITH_HD constexpr T const& value() const& noexcept {
    PITH_EXPECTS(ok_);
    return value_;
  }
  PITH_HD constexpr T&& value() && noexcept {
    PITH_EXPECTS(ok_);
    return std::move(value_);
  }

 private:
  union {
    T value_;
    pith::status error_;
  };
  bool ok_ = true;
};

}  // namespace pith
