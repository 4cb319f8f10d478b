// Which expert lies in which slot of the GPU's cache: slots with a state machine, pins, and maps both ways,
// one budget of slots for all layers of one shape. Pure bookkeeping: it copies nothing and knows no device.
// Called by the scheduler's thread only; allocates nothing after its creation.
//
//            reserve             loaded             pin
//     free ----------> loading ----------> resident ----> in use (pins > 0)
//      ^                  | abandon           |   <----
//      |                  v                   |    unpin
//      +--- freed --- evicting <--- evict ----+
//
// A slot that is evicting has no expert any more, but the device may still read it (kernels that were
// launched before) or write it (chunks of an abandoned copy); whoever knows that this is over, or orders what
// comes next behind it, calls freed().
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "src/policy/evict.h"

namespace moerun {

enum class SlotState : uint8_t { free, loading, resident, in_use, evicting };
constexpr int kSlotStates = 5;
const char* name_of(SlotState state);

struct SlotOwner {
  int32_t layer = -1, expert = -1;  // -1: nobody
  bool operator==(const SlotOwner&) const = default;
};

class CacheTable {
 public:
  // `experts` per layer. Throws InvalidArgument if a number is negative.
  CacheTable(int32_t slots, std::span<const int32_t> experts);

  // Every change throws InvalidState when the slot is not in the state that the arrow begins at.
  // Takes a free slot for an expert that has none; -1 if no slot is free.
  int32_t reserve(int32_t layer, int32_t expert);
  void loaded(int32_t slot);
  void abandon(int32_t slot);
  void pin(int32_t slot);
  void unpin(int32_t slot);
  void evict(int32_t slot);
  void freed(int32_t slot);
  // All slots are free, whatever they were: after an error, when the device does nothing any more.
  void clear() noexcept;

  // The slot whose expert is worth least among the resident ones that are not in use, by the values that
  // each layer keeps; -1 if there is none. A tie goes to the expert used longer ago, then to the lower slot.
  int32_t victim(std::span<const policy::CacheValues> values) const;

  int32_t slots() const { return static_cast<int32_t>(slots_.size()); }
  int32_t layers() const { return static_cast<int32_t>(by_layer_.size()); }
  int32_t count(SlotState state) const { return counts_[static_cast<int>(state)]; }
  SlotState state(int32_t slot) const { return at(slot).state; }
  SlotOwner owner(int32_t slot) const { return at(slot).owner; }
  int32_t pins(int32_t slot) const { return at(slot).pins; }
  // The slot that holds the expert or is being loaded with it; -1 if there is none.
  int32_t slot_of(int32_t layer, int32_t expert) const;
  // [E] 1 where the expert is resident or in use.
  std::span<const uint8_t> resident(int32_t layer) const;

 private:
  struct Slot {
    SlotState state = SlotState::free;
    SlotOwner owner;
    int32_t pins = 0;
  };
  struct LayerMap {
    std::vector<int32_t> slot;      // [E] or -1
    std::vector<uint8_t> resident;  // [E]
  };

  const Slot& at(int32_t slot) const;
  Slot& expect(int32_t slot, SlotState state, const char* change);
  void move(Slot& slot, SlotState to);
  void forget_owner(Slot& slot);

  std::vector<Slot> slots_;
  std::vector<LayerMap> by_layer_;
  std::vector<int32_t> free_;  // a stack
  int32_t counts_[kSlotStates] = {};
};

}  // namespace moerun
