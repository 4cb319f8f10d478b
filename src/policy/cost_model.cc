#include "src/policy/cost_model.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "src/error.h"

namespace moerun::policy {
namespace {

constexpr int kMaxTerms = 4;

// One equation of the fit: terms . coefficients = us.
struct Row {
  std::array<double, kMaxTerms> terms{};
  double us = 0;
};

// Gaussian elimination with partial pivoting on the normal equations; false when they are singular.
bool solve(std::array<std::array<double, kMaxTerms + 1>, kMaxTerms>& m, int n,
           std::array<double, kMaxTerms>& x) {
  for (int col = 0; col < n; ++col) {
    int pivot = col;
    for (int row = col + 1; row < n; ++row) {
      if (std::fabs(m[row][col]) > std::fabs(m[pivot][col])) pivot = row;
    }
    if (std::fabs(m[pivot][col]) < 1e-12) return false;
    std::swap(m[pivot], m[col]);
    for (int row = 0; row < n; ++row) {
      if (row == col) continue;
      const double factor = m[row][col] / m[col][col];
      for (int k = col; k <= n; ++k) m[row][k] -= factor * m[col][k];
    }
  }
  for (int i = 0; i < n; ++i) x[i] = m[i][n] / m[i][i];
  return true;
}

// Least squares over the terms in `mask`; the others are 0. Equations are scaled to a right side of 1, and
// terms to a largest entry of 1, so that the singularity test means the same for microseconds and for bytes.
bool least_squares(const std::vector<Row>& rows, int n, unsigned mask, std::array<double, kMaxTerms>& out) {
  std::array<int, kMaxTerms> used{};
  int m = 0;
  for (int i = 0; i < n; ++i) {
    if (mask >> i & 1U) used[m++] = i;
  }
  std::array<double, kMaxTerms> scale{};
  for (int i = 0; i < m; ++i) {
    for (const Row& row : rows) scale[i] = std::max(scale[i], row.terms[used[i]] / row.us);
    if (scale[i] == 0) return false;
  }
  std::array<std::array<double, kMaxTerms + 1>, kMaxTerms> normal{};
  for (const Row& row : rows) {
    for (int i = 0; i < m; ++i) {
      const double ti = row.terms[used[i]] / row.us / scale[i];
      for (int j = 0; j < m; ++j) normal[i][j] += ti * row.terms[used[j]] / row.us / scale[j];
      normal[i][m] += ti;
    }
  }
  std::array<double, kMaxTerms> x{};
  if (!solve(normal, m, x)) return false;
  out.fill(0);
  for (int i = 0; i < m; ++i) out[used[i]] = x[i] / scale[i];
  return true;
}

double relative_error(const Row& row, int n, const std::array<double, kMaxTerms>& x) {
  double fitted = 0;
  for (int i = 0; i < n; ++i) fitted += row.terms[i] * x[i];
  return fitted / row.us - 1;
}

double rms_residual(const std::vector<Row>& rows, int n, const std::array<double, kMaxTerms>& x) {
  double sum = 0;
  for (const Row& row : rows) sum += relative_error(row, n, x) * relative_error(row, n, x);
  return std::sqrt(sum / static_cast<double>(rows.size()));
}

// Non-negative least squares by trying every subset of terms: at most 15 subsets of 4 terms.
double fit_rows(const std::vector<Row>& rows, int n, const char* what, std::array<double, kMaxTerms>& best) {
  for (const Row& row : rows) {
    if (!(row.us > 0) || !std::isfinite(row.us)) {
      throw InvalidArgument(std::string("calibration: a time of the ") + what +
                            " is not a positive number; time it again");
    }
  }
  std::array<double, kMaxTerms> x{};
  if (static_cast<int>(rows.size()) < n || !least_squares(rows, n, (1U << n) - 1, x)) {
    throw InvalidArgument(std::string("calibration: the points of the ") + what + " do not determine its " +
                          std::to_string(n) + " coefficients; time at least " + std::to_string(n) +
                          " runs whose experts, tokens or bytes differ independently");
  }
  double best_residual = INFINITY;
  for (unsigned mask = 1; mask < 1U << n; ++mask) {
    if (!least_squares(rows, n, mask, x) || *std::min_element(x.begin(), x.end()) < 0) continue;
    const double residual = rms_residual(rows, n, x);
    if (residual < best_residual) {
      best_residual = residual;
      best = x;
    }
  }
  return best_residual;
}

// Of one side: x = {once (the CPU's), per expert, per token, per part}.
double fit_side(std::span<const ComputePoint> points, bool on_cpu, std::array<double, kMaxTerms>& x) {
  const bool parts = std::any_of(points.begin(), points.end(), [](const auto& p) { return p.share < 1; });
  std::vector<Row> rows;
  for (const ComputePoint& p : points) {
    if (!(p.share > 0 && p.share <= 1))
      throw InvalidArgument("calibration: a share of " + std::to_string(p.share) +
                            " of an expert was timed; it must lie in (0, 1]");
    const auto experts = static_cast<double>(p.experts), tokens = static_cast<double>(p.tokens);
    Row row{{p.share * experts, p.share * tokens, p.share < 1 ? experts : 0.0, 1.0}, p.us};
    if (!parts) std::swap(row.terms[2], row.terms[3]);
    rows.push_back(row);
  }
  std::array<double, kMaxTerms> found{};
  const double residual =
      fit_rows(rows, 2 + (parts ? 1 : 0) + (on_cpu ? 1 : 0), on_cpu ? "CPU" : "GPU", found);
  x = {on_cpu ? found[parts ? 3 : 2] : 0, found[0], found[1], parts ? found[2] : 0};
  return residual;
}

}  // namespace

void check(const CostModel& cost) {
  const std::array<std::pair<const char*, double>, 8> figures{{{"cpu_first_us", cost.cpu_first_us},
                                                               {"cpu_expert_us", cost.cpu_expert_us},
                                                               {"cpu_token_us", cost.cpu_token_us},
                                                               {"gpu_expert_us", cost.gpu_expert_us},
                                                               {"gpu_token_us", cost.gpu_token_us},
                                                               {"copy_us", cost.copy_us},
                                                               {"cpu_part_us", cost.cpu_part_us},
                                                               {"gpu_part_us", cost.gpu_part_us}}};
  for (const auto& [name, us] : figures) {
    if (!(us >= 0) || !std::isfinite(us)) {
      throw InvalidArgument(std::string("CostModel.") + name + " is " + std::to_string(us) +
                            "; a time in microseconds must be finite and not negative");
    }
  }
}

Calibration fit(std::span<const ComputePoint> cpu, std::span<const ComputePoint> gpu,
                std::span<const CopyPoint> copies, int64_t expert_bytes) {
  Calibration out;
  std::array<double, kMaxTerms> x{};
  out.cpu_residual = fit_side(cpu, true, x);
  out.cost.cpu_first_us = x[0];
  out.cost.cpu_expert_us = x[1];
  out.cost.cpu_token_us = x[2];
  out.cost.cpu_part_us = x[3];
  if (!gpu.empty()) {
    out.gpu_residual = fit_side(gpu, false, x);
    out.cost.gpu_expert_us = x[1];
    out.cost.gpu_token_us = x[2];
    out.cost.gpu_part_us = x[3];
  }
  if (!copies.empty()) {
    if (expert_bytes <= 0)
      throw InvalidArgument("calibration: expert_bytes must be positive; give the size of one expert");
    std::vector<Row> rows;
    for (const CopyPoint& p : copies) rows.push_back({{1.0, static_cast<double>(p.bytes)}, p.us});
    out.copy_residual = fit_rows(rows, 2, "copies", x);
    out.copy_fixed_us = x[0];
    out.copy_byte_us = x[1];
    out.cost.copy_us = x[0] + x[1] * static_cast<double>(expert_bytes);
  }
  return out;
}

CostModel refresh(CostModel cost, Resource resource, double planned_us, double observed_us, double rate) {
  if (!(rate > 0 && rate <= 1)) throw InvalidArgument("refresh: rate must lie in (0, 1]");
  if (!(planned_us > 0) || !(observed_us > 0)) return cost;  // nothing ran there
  const double ratio = std::clamp(observed_us / planned_us, 1 / kMaxStep, kMaxStep);
  const double factor = 1 + rate * (ratio - 1);
  switch (resource) {
    case Resource::cpu:
      cost.cpu_first_us *= factor;
      cost.cpu_expert_us *= factor;
      cost.cpu_token_us *= factor;
      cost.cpu_part_us *= factor;
      break;
    case Resource::gpu:
      cost.gpu_expert_us *= factor;
      cost.gpu_token_us *= factor;
      cost.gpu_part_us *= factor;
      break;
    case Resource::copy:
      cost.copy_us *= factor;
      break;
  }
  return cost;
}

}  // namespace moerun::policy
