// SPDX-License-Identifier: Apache-2.0
#include "measure.hpp"

void example::add_transformed_caches(std::vector<plan>& plans) { for_each_transformed_cache(plan_list{plans}); }
