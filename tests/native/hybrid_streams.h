// Callers' streams that wait for batches that are not enqueued yet; hybrid_test.cc runs it.
#pragma once

namespace moerun {

void streams();

}  // namespace moerun
