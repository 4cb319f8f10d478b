#include "src/cache_table/cache_table.h"

#include <algorithm>
#include <iterator>
#include <string>
#include <tuple>

#include "src/error.h"

namespace moerun {
namespace {

constexpr const char* kStateNames[kSlotStates] = {"free", "loading", "resident", "in use", "evicting"};

}  // namespace

const char* name_of(SlotState state) {
  return kStateNames[static_cast<int>(state)];
}

CacheTable::CacheTable(int32_t slots, std::span<const int32_t> experts) {
  if (slots < 0) throw InvalidArgument("a cache cannot have " + std::to_string(slots) + " slots");
  slots_.resize(slots);
  free_.reserve(slots);
  for (const int32_t n : experts) {
    if (n < 0) throw InvalidArgument("a layer cannot have " + std::to_string(n) + " experts");
    by_layer_.push_back({.slot = std::vector<int32_t>(n, -1), .resident = std::vector<uint8_t>(n, 0)});
  }
  clear();
}

void CacheTable::clear() noexcept {
  std::fill(slots_.begin(), slots_.end(), Slot{});
  for (LayerMap& layer : by_layer_) {
    std::fill(layer.slot.begin(), layer.slot.end(), -1);
    std::fill(layer.resident.begin(), layer.resident.end(), 0);
  }
  free_.clear();
  for (int32_t s = slots() - 1; s >= 0; --s) free_.push_back(s);  // slot 0 is taken first
  std::fill(std::begin(counts_), std::end(counts_), 0);
  counts_[static_cast<int>(SlotState::free)] = slots();
}

const CacheTable::Slot& CacheTable::at(int32_t slot) const {
  if (slot < 0 || slot >= slots())
    throw InvalidArgument("there is no slot " + std::to_string(slot) + "; the cache has " +
                          std::to_string(slots()));
  return slots_[slot];
}

CacheTable::Slot& CacheTable::expect(int32_t slot, SlotState state, const char* change) {
  if (at(slot).state != state)
    throw InvalidState("slot " + std::to_string(slot) + " is " + name_of(slots_[slot].state) + "; " + change +
                       " needs it to be " + name_of(state));
  return slots_[slot];
}

void CacheTable::move(Slot& slot, SlotState to) {
  --counts_[static_cast<int>(slot.state)];
  ++counts_[static_cast<int>(to)];
  slot.state = to;
}

void CacheTable::forget_owner(Slot& slot) {
  LayerMap& map = by_layer_[slot.owner.layer];
  map.slot[slot.owner.expert] = -1;
  map.resident[slot.owner.expert] = 0;
  slot.owner = {};
}

int32_t CacheTable::slot_of(int32_t layer, int32_t expert) const {
  if (layer < 0 || layer >= layers() || expert < 0 ||
      expert >= static_cast<int32_t>(by_layer_[layer].slot.size()))
    throw InvalidArgument("there is no expert " + std::to_string(expert) + " in layer " +
                          std::to_string(layer) + " of this cache");
  return by_layer_[layer].slot[expert];
}

std::span<const uint8_t> CacheTable::resident(int32_t layer) const {
  if (layer < 0 || layer >= layers())
    throw InvalidArgument("there is no layer " + std::to_string(layer) + " in this cache");
  return by_layer_[layer].resident;
}

int32_t CacheTable::reserve(int32_t layer, int32_t expert) {
  if (const int32_t held = slot_of(layer, expert); held >= 0)
    throw InvalidState("expert " + std::to_string(expert) + " of layer " + std::to_string(layer) +
                       " already has slot " + std::to_string(held));
  if (free_.empty()) return -1;
  const int32_t s = free_.back();
  free_.pop_back();
  slots_[s].owner = {layer, expert};
  by_layer_[layer].slot[expert] = s;
  move(slots_[s], SlotState::loading);
  return s;
}

void CacheTable::loaded(int32_t slot) {
  Slot& s = expect(slot, SlotState::loading, "loaded()");
  by_layer_[s.owner.layer].resident[s.owner.expert] = 1;
  move(s, SlotState::resident);
}

void CacheTable::abandon(int32_t slot) {
  Slot& s = expect(slot, SlotState::loading, "abandon()");
  forget_owner(s);
  move(s, SlotState::evicting);
}

void CacheTable::pin(int32_t slot) {
  if (at(slot).state != SlotState::in_use)
    move(expect(slot, SlotState::resident, "pin()"), SlotState::in_use);
  ++slots_[slot].pins;
}

void CacheTable::unpin(int32_t slot) {
  Slot& s = expect(slot, SlotState::in_use, "unpin()");
  if (--s.pins == 0) move(s, SlotState::resident);
}

void CacheTable::evict(int32_t slot) {
  Slot& s = expect(slot, SlotState::resident, "evict()");
  forget_owner(s);
  move(s, SlotState::evicting);
}

void CacheTable::freed(int32_t slot) {
  move(expect(slot, SlotState::evicting, "freed()"), SlotState::free);
  free_.push_back(slot);
}

int32_t CacheTable::victim(std::span<const policy::CacheValues> values) const {
  if (static_cast<int32_t>(values.size()) != layers())
    throw InvalidArgument("victim(): values of " + std::to_string(values.size()) + " layers for " +
                          std::to_string(layers()));
  int32_t lowest = -1;
  std::tuple<double, int64_t> least;
  for (int32_t s = 0; s < slots(); ++s) {
    const Slot& slot = slots_[s];
    if (slot.state != SlotState::resident) continue;
    const policy::CacheValues& layer = values[slot.owner.layer];
    const std::tuple worth{layer.values()[slot.owner.expert], layer.last_use()[slot.owner.expert]};
    if (lowest >= 0 && least <= worth) continue;
    lowest = s;
    least = worth;
  }
  return lowest;
}

}  // namespace moerun
