// The operators of the kd family: schemas, allocation, dispatch.
#include <tuple>

#include "common/torch_ops.h"
#include "kd/kd_loss.h"
#include "kd/kd_math.h"
#include "kd/mse_ce.h"
#include "kd/soft_ce.h"
#include "kd/soft_ce_math.h"

namespace pyddfast {
namespace {

// The upstream gradient in the accumulation type, with its stride: 0 for one value for all rows.
struct Upstream {
  Tensor values;
  int64_t stride;

  Upstream(const Tensor& gradient, const Tensor& student)
      : values(gradient.scalar_type() == accumulation_type(student)
                   ? gradient
                   : torch::stable::to(gradient, accumulation_type(student))),
        stride(gradient.dim() == 0 ? 0 : values.stride(0)) {
    STD_TORCH_CHECK(gradient.dim() == 0 || gradient.numel() == student.size(0),
                    "pyddfast: the upstream gradient is a scalar or one value a row");
  }
};

// The sum in row order, so that it does not depend on the number of threads.
template <class T>
void sum_in_order(const Tensor& rows, const Tensor& total) {
  const T* values = rows.const_data_ptr<T>();
  double sum = 0;
  for (int64_t r = 0; r < rows.numel(); ++r) sum += double(values[r]);
  *total.mutable_data_ptr<T>() = T(sum);
}

void sum_rows(const Tensor& rows, const Tensor& total) {
  if (rows.scalar_type() == ScalarType::Double) {
    sum_in_order<double>(rows, total);
  } else {
    sum_in_order<float>(rows, total);
  }
}

enum Reduction : int64_t { kNone, kSum, kBatchMean };

// The factor of every row's loss and gradient.  An empty batch has the loss 0.
double row_scale(double scale, int64_t reduction, int64_t rows) {
  return reduction == kBatchMean ? scale / double(std::max<int64_t>(1, rows)) : scale;
}

// Loss rows and, if reduced, their sum.
struct Loss {
  Tensor rows;
  std::optional<Tensor> total;

  Loss(const Tensor& student, int64_t reduction)
      : rows(new_tensor(student, {student.size(0)}, accumulation_type(student))) {
    if (reduction != kNone) total = new_tensor(student, {}, accumulation_type(student));
  }

  template <class Params>
  void set_in(Params& params) const {
    params.loss_rows = rows.mutable_data_ptr();
    params.loss = total ? total->mutable_data_ptr() : nullptr;
  }

  Tensor result() const { return total ? *total : rows; }
};

Tensor new_row_stats(const Tensor& student, int64_t size) {
  return new_tensor(student, {student.size(0), size}, accumulation_type(student));
}

Tensor new_gradient(const Tensor& like, ScalarType type) {
  return new_tensor(like, {like.size(0), like.size(1)}, type);
}

// The parameters that every op here has; the call keeps the tensors alive.
template <class Params>
void set_rows(Params& params, const Tensor& student, const std::optional<Tensor>& weight,
              double scale, int64_t reduction) {
  params.student = student.const_data_ptr();
  params.student_dtype = dtype_of(student);
  params.student_stride = student.stride(0);
  params.rows = student.size(0);
  params.classes = student.size(1);
  params.weight = weight ? weight->const_data_ptr() : nullptr;
  params.scale = row_scale(scale, reduction, params.rows);
  params.grad_dtype = params.student_dtype;
}

// ---- kd_loss ---------------------------------------------------------------------------------

// The parameters that every form shares, and the tensors that keep their memory alive.
struct KdCall {
  Tensor student, teacher;
  std::optional<Tensor> weight;
  KdLossParams params{};

  KdCall(const Tensor& student_, const Tensor& teacher_, const std::optional<Tensor>& weight_,
         double temperature, int64_t teacher_kind, double scale, int64_t reduction)
      : student(with_contiguous_rows(student_)),
        teacher(with_contiguous_rows(teacher_)),
        weight(row_vector(weight_, student_)) {
    STD_TORCH_CHECK(student.size(0) == teacher.size(0) && student.size(1) == teacher.size(1),
                    "pyddfast: student and teacher differ in shape");
    set_rows(params, student, weight, scale, reduction);
    params.teacher = teacher.const_data_ptr();
    params.teacher_dtype = dtype_of(teacher);
    params.teacher_kind = TeacherKind(teacher_kind);
    params.teacher_stride = teacher.stride(0);
    params.temperature = temperature;
  }
};

// ---- soft_ce ---------------------------------------------------------------------------------

struct SoftCeCall {
  Tensor student, target;
  std::optional<Tensor> weight;
  SoftCeParams params{};

  SoftCeCall(const Tensor& student_, const Tensor& target_, const std::optional<Tensor>& weight_,
             double temperature, int64_t reduction)
      : student(with_contiguous_rows(student_)),
        target(with_contiguous_rows(target_)),
        weight(row_vector(weight_, student_)) {
    STD_TORCH_CHECK(student.size(0) == target.size(0) && student.size(1) == target.size(1),
                    "pyddfast: student and target differ in shape");
    set_rows(params, student, weight, 1.0, reduction);
    params.target = target.const_data_ptr();
    params.target_dtype = dtype_of(target);
    params.target_stride = target.stride(0);
    params.temperature = temperature;
  }
};

// ---- mse_ce ----------------------------------------------------------------------------------

struct MseCeCall {
  Tensor student, teacher, target;
  std::optional<Tensor> weight;
  MseCeParams params{};

  MseCeCall(const Tensor& student_, const Tensor& teacher_, const Tensor& target_,
            const std::optional<Tensor>& weight_, double ce_weight, int64_t reduction)
      : student(with_contiguous_rows(student_)),
        teacher(with_contiguous_rows(teacher_)),
        target(target_),
        weight(row_vector(weight_, student_)) {
    STD_TORCH_CHECK(student.size(0) == teacher.size(0) && student.size(1) == teacher.size(1),
                    "pyddfast: student and teacher differ in shape");
    STD_TORCH_CHECK(target.dim() == 1 && target.size(0) == student.size(0) &&
                        target.scalar_type() == ScalarType::Long,
                    "pyddfast: target is one int64 label a row");
    set_rows(params, student, weight, 1.0, reduction);
    params.teacher = teacher.const_data_ptr();
    params.target = target.const_data_ptr<int64_t>();
    params.teacher_dtype = dtype_of(teacher);
    params.teacher_stride = teacher.stride(0);
    params.target_stride = target.stride(0);
    params.ce_weight = ce_weight;
  }
};

// ---- what the ops share: loss; loss with gradient; one gradient ---------------------------------

template <class Call>
struct Kernels;

template <>
struct Kernels<KdCall> {
  static constexpr auto cpu = kd_loss_cpu;
  static constexpr auto forward_cuda = kd_loss_forward_cuda;
  static constexpr auto backward_cuda = kd_loss_backward_cuda;
  static constexpr int row_size = kKdRowSize;
  static const Tensor& other(const KdCall& call) { return call.teacher; }
  static void*& grad_other(KdCall& call) { return call.params.grad_teacher; }
};

template <>
struct Kernels<SoftCeCall> {
  static constexpr auto cpu = soft_ce_cpu;
  static constexpr auto forward_cuda = soft_ce_forward_cuda;
  static constexpr auto backward_cuda = soft_ce_backward_cuda;
  static constexpr int row_size = kSoftCeRowSize;
  static const Tensor& other(const SoftCeCall& call) { return call.target; }
  static void*& grad_other(SoftCeCall& call) { return call.params.grad_target; }
};

template <>
struct Kernels<MseCeCall> {
  static constexpr auto cpu = mse_ce_cpu;
  static constexpr auto forward_cuda = mse_ce_forward_cuda;
  static constexpr auto backward_cuda = mse_ce_backward_cuda;
  static constexpr int row_size = kMseCeRowSize;
  static const Tensor& other(const MseCeCall& call) { return call.teacher; }
  static void*& grad_other(MseCeCall& call) { return call.params.grad_teacher; }
};

template <bool kCuda, class Call>
void run_forward(const Call& call, const Loss& loss) {
  if constexpr (kCuda) {
    launch(Kernels<Call>::forward_cuda, call.params, call.student);
  } else {
    run_rows(Kernels<Call>::cpu, call.params);
    if (loss.total) sum_rows(loss.rows, *loss.total);
  }
}

template <bool kCuda, class Call>
std::tuple<Tensor, Tensor> loss_of(Call call, int64_t reduction) {
  const Loss loss(call.student, reduction);
  const Tensor row_stats = new_row_stats(call.student, Kernels<Call>::row_size);
  loss.set_in(call.params);
  call.params.row_stats = row_stats.mutable_data_ptr();
  run_forward<kCuda>(call, loss);
  return {loss.result(), row_stats};
}

template <bool kCuda, class Call>
std::tuple<Tensor, Tensor> value_and_grad_of(Call call, int64_t reduction) {
  const Loss loss(call.student, reduction);
  const Tensor gradient = new_gradient(call.student, accumulation_type(call.student));
  loss.set_in(call.params);
  call.params.grad_student = gradient.mutable_data_ptr();
  call.params.grad_dtype = dtype_of(gradient);
  run_forward<kCuda>(call, loss);
  return {loss.result(), gradient};
}

template <bool kCuda, bool kOther, class Call>
Tensor gradient_of(Call call, const Tensor& grad_loss, const std::optional<Tensor>& row_stats) {
  const Upstream upstream(grad_loss, call.student);
  const Tensor& like = kOther ? Kernels<Call>::other(call) : call.student;
  const Tensor gradient = new_gradient(like, like.scalar_type());
  (kOther ? Kernels<Call>::grad_other(call) : call.params.grad_student) =
      gradient.mutable_data_ptr();
  call.params.upstream = upstream.values.const_data_ptr();
  call.params.upstream_stride = upstream.stride;
  if constexpr (kCuda) {
    STD_TORCH_CHECK(row_stats.has_value(), "pyddfast: the forward's row_stats are needed");
    call.params.row_stats = const_cast<void*>(row_stats->const_data_ptr());
    launch(Kernels<Call>::backward_cuda, call.params, call.student);
  } else {
    run_rows(Kernels<Call>::cpu, call.params);  // recomputes the row statistics while it is there
  }
  return gradient;
}

// ---- the operators ------------------------------------------------------------------------------

template <bool kCuda>
std::tuple<Tensor, Tensor> kd_loss(const Tensor& student, const Tensor& teacher,
                                   std::optional<Tensor> weight, double temperature,
                                   int64_t teacher_kind, double scale, int64_t reduction) {
  return loss_of<kCuda>(
      KdCall(student, teacher, weight, temperature, teacher_kind, scale, reduction), reduction);
}

template <bool kCuda>
std::tuple<Tensor, Tensor, Tensor> kd_loss_score(const Tensor& student, const Tensor& teacher,
                                                 std::optional<Tensor> weight, double temperature,
                                                 int64_t teacher_kind, double scale,
                                                 int64_t reduction) {
  KdCall call(student, teacher, weight, temperature, teacher_kind, scale, reduction);
  const Loss loss(student, reduction);
  const Tensor score = new_tensor(student, {student.size(0)}, accumulation_type(student));
  const Tensor row_stats = new_row_stats(student, kKdRowSize);
  loss.set_in(call.params);
  call.params.score = score.mutable_data_ptr();
  call.params.row_stats = row_stats.mutable_data_ptr();
  run_forward<kCuda>(call, loss);
  return {loss.result(), score, row_stats};
}

template <bool kCuda>
std::tuple<Tensor, Tensor, Tensor> kd_value_and_grad(const Tensor& student, const Tensor& teacher,
                                                     std::optional<Tensor> weight,
                                                     std::optional<Tensor> grad_scale,
                                                     double temperature, int64_t teacher_kind,
                                                     double scale, int64_t reduction,
                                                     bool wide_grad) {
  KdCall call(student, teacher, weight, temperature, teacher_kind, scale, reduction);
  const Loss loss(student, reduction);
  const Tensor score = new_tensor(student, {student.size(0)}, accumulation_type(student));
  const Tensor gradient =
      new_gradient(student, wide_grad ? accumulation_type(student) : student.scalar_type());
  std::optional<Upstream> upstream;
  if (grad_scale) {
    STD_TORCH_CHECK(grad_scale->numel() == 1, "pyddfast: grad_scale is a scalar");
    upstream.emplace(*grad_scale, student);
  }
  loss.set_in(call.params);
  call.params.score = score.mutable_data_ptr();
  call.params.grad_student = gradient.mutable_data_ptr();
  call.params.grad_dtype = dtype_of(gradient);
  call.params.upstream = upstream ? upstream->values.const_data_ptr() : nullptr;
  call.params.upstream_stride = 0;
  run_forward<kCuda>(call, loss);
  return {loss.result(), score, gradient};
}

// One gradient of kd_loss; kTeacher says which.
template <bool kCuda, bool kTeacher>
Tensor kd_backward(const Tensor& grad_loss, const Tensor& student, const Tensor& teacher,
                   std::optional<Tensor> weight, std::optional<Tensor> row_stats,
                   double temperature, int64_t teacher_kind, double scale, int64_t reduction) {
  return gradient_of<kCuda, kTeacher>(
      KdCall(student, teacher, weight, temperature, teacher_kind, scale, reduction), grad_loss,
      row_stats);
}

template <bool kCuda>
std::tuple<Tensor, Tensor> soft_ce(const Tensor& student, const Tensor& target,
                                   std::optional<Tensor> weight, double temperature,
                                   int64_t reduction) {
  return loss_of<kCuda>(SoftCeCall(student, target, weight, temperature, reduction), reduction);
}

template <bool kCuda>
std::tuple<Tensor, Tensor> soft_ce_value_and_grad(const Tensor& student, const Tensor& target,
                                                  std::optional<Tensor> weight, double temperature,
                                                  int64_t reduction) {
  return value_and_grad_of<kCuda>(SoftCeCall(student, target, weight, temperature, reduction),
                                  reduction);
}

template <bool kCuda, bool kTarget>
Tensor soft_ce_backward(const Tensor& grad_loss, const Tensor& student, const Tensor& target,
                        std::optional<Tensor> weight, std::optional<Tensor> row_stats,
                        double temperature, int64_t reduction) {
  return gradient_of<kCuda, kTarget>(SoftCeCall(student, target, weight, temperature, reduction),
                                     grad_loss, row_stats);
}

template <bool kCuda>
std::tuple<Tensor, Tensor> mse_ce(const Tensor& student, const Tensor& teacher,
                                  const Tensor& target, std::optional<Tensor> weight,
                                  double ce_weight, int64_t reduction) {
  return loss_of<kCuda>(MseCeCall(student, teacher, target, weight, ce_weight, reduction),
                        reduction);
}

template <bool kCuda>
std::tuple<Tensor, Tensor> mse_ce_value_and_grad(const Tensor& student, const Tensor& teacher,
                                                 const Tensor& target, std::optional<Tensor> weight,
                                                 double ce_weight, int64_t reduction) {
  return value_and_grad_of<kCuda>(MseCeCall(student, teacher, target, weight, ce_weight, reduction),
                                  reduction);
}

template <bool kCuda, bool kTeacher>
Tensor mse_ce_backward(const Tensor& grad_loss, const Tensor& student, const Tensor& teacher,
                       const Tensor& target, std::optional<Tensor> weight,
                       std::optional<Tensor> row_stats, double ce_weight, int64_t reduction) {
  return gradient_of<kCuda, kTeacher>(
      MseCeCall(student, teacher, target, weight, ce_weight, reduction), grad_loss, row_stats);
}

template <bool kCuda>
void register_kernels(torch::stable::detail::StableLibrary& m) {
  m.impl("kd_loss", TORCH_BOX(&kd_loss<kCuda>));
  m.impl("kd_loss_score", TORCH_BOX(&kd_loss_score<kCuda>));
  m.impl("kd_value_and_grad", TORCH_BOX(&kd_value_and_grad<kCuda>));
  m.impl("kd_grad_student", TORCH_BOX((&kd_backward<kCuda, false>)));
  m.impl("kd_grad_teacher", TORCH_BOX((&kd_backward<kCuda, true>)));
  m.impl("soft_ce", TORCH_BOX(&soft_ce<kCuda>));
  m.impl("soft_ce_value_and_grad", TORCH_BOX(&soft_ce_value_and_grad<kCuda>));
  m.impl("soft_ce_grad_student", TORCH_BOX((&soft_ce_backward<kCuda, false>)));
  m.impl("soft_ce_grad_target", TORCH_BOX((&soft_ce_backward<kCuda, true>)));
  m.impl("mse_ce", TORCH_BOX(&mse_ce<kCuda>));
  m.impl("mse_ce_value_and_grad", TORCH_BOX(&mse_ce_value_and_grad<kCuda>));
  m.impl("mse_ce_grad_student", TORCH_BOX((&mse_ce_backward<kCuda, false>)));
  m.impl("mse_ce_grad_teacher", TORCH_BOX((&mse_ce_backward<kCuda, true>)));
}

}  // namespace
}  // namespace pyddfast

// teacher_kind: 0 logits, 1 probabilities, 2 log-probabilities.  reduction: 0 rows, 1 their sum,
// 2 their sum over their number.  scale multiplies loss and gradient (T^2).  row_stats is what the
// forward kept; the CPU computes it again and takes none.
STABLE_TORCH_LIBRARY_FRAGMENT(PYDDFAST_NAMESPACE, m) {
  m.def(
      "kd_loss(Tensor student, Tensor teacher, Tensor? weight, float temperature, int teacher_kind,"
      " float scale, int reduction) -> (Tensor loss, Tensor row_stats)");
  m.def(
      "kd_loss_score(Tensor student, Tensor teacher, Tensor? weight, float temperature,"
      " int teacher_kind, float scale, int reduction)"
      " -> (Tensor loss, Tensor score, Tensor row_stats)");
  m.def(
      "kd_value_and_grad(Tensor student, Tensor teacher, Tensor? weight, Tensor? grad_scale,"
      " float temperature, int teacher_kind, float scale, int reduction, bool wide_grad)"
      " -> (Tensor loss, Tensor score, Tensor grad)");
  m.def(
      "kd_grad_student(Tensor grad_loss, Tensor student, Tensor teacher, Tensor? weight,"
      " Tensor? row_stats, float temperature, int teacher_kind, float scale, int reduction)"
      " -> Tensor");
  m.def(
      "kd_grad_teacher(Tensor grad_loss, Tensor student, Tensor teacher, Tensor? weight,"
      " Tensor? row_stats, float temperature, int teacher_kind, float scale, int reduction)"
      " -> Tensor");
  m.def(
      "soft_ce(Tensor student, Tensor target, Tensor? weight, float temperature, int reduction)"
      " -> (Tensor loss, Tensor row_stats)");
  m.def(
      "soft_ce_value_and_grad(Tensor student, Tensor target, Tensor? weight, float temperature,"
      " int reduction) -> (Tensor loss, Tensor grad)");
  m.def(
      "soft_ce_grad_student(Tensor grad_loss, Tensor student, Tensor target, Tensor? weight,"
      " Tensor? row_stats, float temperature, int reduction) -> Tensor");
  m.def(
      "soft_ce_grad_target(Tensor grad_loss, Tensor student, Tensor target, Tensor? weight,"
      " Tensor? row_stats, float temperature, int reduction) -> Tensor");
  m.def(
      "mse_ce(Tensor student, Tensor teacher, Tensor target, Tensor? weight, float ce_weight,"
      " int reduction) -> (Tensor loss, Tensor row_stats)");
  m.def(
      "mse_ce_value_and_grad(Tensor student, Tensor teacher, Tensor target, Tensor? weight,"
      " float ce_weight, int reduction) -> (Tensor loss, Tensor grad)");
  m.def(
      "mse_ce_grad_student(Tensor grad_loss, Tensor student, Tensor teacher, Tensor target,"
      " Tensor? weight, Tensor? row_stats, float ce_weight, int reduction) -> Tensor");
  m.def(
      "mse_ce_grad_teacher(Tensor grad_loss, Tensor student, Tensor teacher, Tensor target,"
      " Tensor? weight, Tensor? row_stats, float ce_weight, int reduction) -> Tensor");
}

PYDDFAST_IMPLEMENT(pyddfast::register_kernels)
