# The network of one service: three zones, each with a public subnet for the load balancer, a private one for the
# processes and an isolated one for databases. Used by the system.
#
# There is no way out to the internet unless `nat` says so: what the processes ask of AWS goes through endpoints, which
# let in this account alone. An endpoint is of its own region: what asks another one (the lease of two regions, which is
# kept in a third) needs `nat`.

locals {
  partition  = startswith(var.region, "cn-") ? "aws-cn" : startswith(var.region, "us-gov-") ? "aws-us-gov" : "aws"
  dns_suffix = local.partition == "aws-cn" ? "amazonaws.com.cn" : "amazonaws.com"

  # An eighth of the network is for public and isolated subnets, and six eighths are for private ones, so that a zone can
  # be added without moving another.
  public_cidrs   = { for at, zone in var.zones : zone => cidrsubnet(cidrsubnet(var.cidr, 3, 0), 4, at) }
  isolated_cidrs = { for at, zone in var.zones : zone => cidrsubnet(cidrsubnet(var.cidr, 3, 0), 4, at + 8) }
  private_cidrs  = { for at, zone in var.zones : zone => cidrsubnet(var.cidr, 3, at + 1) }

  nat_zones = { none = [], one = slice(var.zones, 0, 1), per-zone = var.zones }[var.nat]

  # What the processes call: images (ecr.*), logs, keys and secrets, and of `kiseki backup` the alarms of restored tables
  # (monitoring). The credentials of a task come from its agent and tokens for RDS are signed by the process itself, so
  # there is neither sts nor rds.
  interface_services = setunion(
    ["ecr.api", "ecr.dkr", "kms", "logs", "monitoring", "secretsmanager"], var.more_interface_endpoints
  )

  # Of services whose requests name something that belongs to somebody, only what is this account's can be asked for:
  # nobody carries data out by way of an account of their own.
  own_things = toset(["dynamodb-streams", "kms", "secretsmanager"])

  endpoint_policies = {
    for service in setunion(local.interface_services, ["dynamodb-streams"]) : service => jsonencode({
      Version = "2012-10-17"
      Statement = [{
        Sid       = "OfThisAccount"
        Effect    = "Allow"
        Principal = "*"
        Action    = "*"
        Resource  = "*"
        Condition = {
          StringEquals = merge(
            { "aws:PrincipalAccount" = var.account_id },
            contains(local.own_things, service) ? { "aws:ResourceAccount" = var.account_id } : {},
          )
        }
      }]
    })
  }

  gateway_policies = {
    s3 = jsonencode({
      Version = "2012-10-17"
      Statement = [
        {
          Sid       = "OfThisAccount"
          Effect    = "Allow"
          Principal = "*"
          Action    = "s3:*"
          Resource  = "*"
          Condition = {
            StringEquals = { "aws:PrincipalAccount" = var.account_id, "aws:ResourceAccount" = var.account_id }
          }
        },
        {
          # Where ECR keeps the layers of images, whoever they belong to.
          Sid       = "LayersOfImages"
          Effect    = "Allow"
          Principal = "*"
          Action    = "s3:GetObject"
          Resource  = "arn:${local.partition}:s3:::prod-${var.region}-starport-layer-bucket/*"
        },
      ]
    })

    dynamodb = jsonencode({
      Version = "2012-10-17"
      Statement = [
        {
          Sid       = "TablesOfThisService"
          Effect    = "Allow"
          Principal = "*"
          Action    = "dynamodb:*"
          Resource  = "arn:${local.partition}:dynamodb:${var.region}:${var.account_id}:table/${var.name}-*"
          Condition = { StringEquals = { "aws:PrincipalAccount" = var.account_id } }
        },
        {
          # Requests that name no table.
          Sid       = "Lists"
          Effect    = "Allow"
          Principal = "*"
          Action    = ["dynamodb:ListTables", "dynamodb:ListBackups"]
          Resource  = "*"
          Condition = { StringEquals = { "aws:PrincipalAccount" = var.account_id } }
        },
      ]
    })
  }
}

resource "aws_vpc" "this" {
  cidr_block           = var.cidr
  enable_dns_support   = true
  enable_dns_hostnames = true

  tags = merge(var.tags, { Name = var.name })
}

# What nobody chose a group or a route table for reaches nothing.
resource "aws_default_security_group" "this" {
  vpc_id = aws_vpc.this.id

  tags = merge(var.tags, { Name = "${var.name}-default-unused" })
}

resource "aws_default_route_table" "this" {
  default_route_table_id = aws_vpc.this.default_route_table_id

  route = []

  tags = merge(var.tags, { Name = "${var.name}-default-unused" })
}

resource "aws_subnet" "public" {
  for_each = local.public_cidrs

  vpc_id                  = aws_vpc.this.id
  availability_zone       = each.key
  cidr_block              = each.value
  map_public_ip_on_launch = false

  tags = merge(var.tags, { Name = "${var.name}-public-${each.key}" })
}

resource "aws_subnet" "private" {
  for_each = local.private_cidrs

  vpc_id                  = aws_vpc.this.id
  availability_zone       = each.key
  cidr_block              = each.value
  map_public_ip_on_launch = false

  tags = merge(var.tags, { Name = "${var.name}-private-${each.key}" })
}

resource "aws_subnet" "isolated" {
  for_each = local.isolated_cidrs

  vpc_id                  = aws_vpc.this.id
  availability_zone       = each.key
  cidr_block              = each.value
  map_public_ip_on_launch = false

  tags = merge(var.tags, { Name = "${var.name}-isolated-${each.key}" })
}

resource "aws_internet_gateway" "this" {
  vpc_id = aws_vpc.this.id

  tags = merge(var.tags, { Name = var.name })
}

resource "aws_route_table" "public" {
  vpc_id = aws_vpc.this.id

  tags = merge(var.tags, { Name = "${var.name}-public" })
}

resource "aws_route" "internet" {
  route_table_id         = aws_route_table.public.id
  destination_cidr_block = "0.0.0.0/0"
  gateway_id             = aws_internet_gateway.this.id
}

resource "aws_route_table_association" "public" {
  for_each = local.public_cidrs

  subnet_id      = aws_subnet.public[each.key].id
  route_table_id = aws_route_table.public.id
}

resource "aws_route_table" "private" {
  for_each = local.private_cidrs

  vpc_id = aws_vpc.this.id

  tags = merge(var.tags, { Name = "${var.name}-private-${each.key}" })
}

resource "aws_route_table_association" "private" {
  for_each = local.private_cidrs

  subnet_id      = aws_subnet.private[each.key].id
  route_table_id = aws_route_table.private[each.key].id
}

resource "aws_route_table" "isolated" {
  vpc_id = aws_vpc.this.id

  tags = merge(var.tags, { Name = "${var.name}-isolated" })
}

resource "aws_route_table_association" "isolated" {
  for_each = local.isolated_cidrs

  subnet_id      = aws_subnet.isolated[each.key].id
  route_table_id = aws_route_table.isolated.id
}

resource "aws_eip" "nat" {
  for_each = toset(local.nat_zones)

  domain = "vpc"

  tags = merge(var.tags, { Name = "${var.name}-nat-${each.key}" })

  depends_on = [aws_internet_gateway.this]
}

resource "aws_nat_gateway" "this" {
  for_each = toset(local.nat_zones)

  allocation_id = aws_eip.nat[each.key].id
  subnet_id     = aws_subnet.public[each.key].id

  tags = merge(var.tags, { Name = "${var.name}-${each.key}" })

  depends_on = [aws_route.internet]
}

resource "aws_route" "nat" {
  for_each = var.nat == "none" ? {} : local.private_cidrs

  route_table_id         = aws_route_table.private[each.key].id
  destination_cidr_block = "0.0.0.0/0"
  nat_gateway_id         = aws_nat_gateway.this[var.nat == "one" ? var.zones[0] : each.key].id
}

resource "aws_vpc_endpoint" "gateway" {
  for_each = local.gateway_policies

  vpc_id            = aws_vpc.this.id
  vpc_endpoint_type = "Gateway"
  service_name      = "com.amazonaws.${var.region}.${each.key}"
  route_table_ids   = [for zone in var.zones : aws_route_table.private[zone].id]
  policy            = each.value

  tags = merge(var.tags, { Name = "${var.name}-${each.key}" })
}

resource "aws_security_group" "endpoints" {
  name        = "${var.name}-endpoints"
  description = "Interface endpoints: HTTPS from the private subnets."
  vpc_id      = aws_vpc.this.id

  tags = merge(var.tags, { Name = "${var.name}-endpoints" })

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_vpc_security_group_ingress_rule" "endpoints" {
  for_each = local.private_cidrs

  security_group_id = aws_security_group.endpoints.id
  description       = "Processes in ${each.key}"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
  cidr_ipv4         = each.value

  tags = merge(var.tags, { Name = "${var.name}-endpoints-${each.key}" })
}

resource "aws_vpc_endpoint" "interface" {
  for_each = local.interface_services

  vpc_id              = aws_vpc.this.id
  vpc_endpoint_type   = "Interface"
  service_name        = "com.amazonaws.${var.region}.${each.key}"
  private_dns_enabled = true
  subnet_ids          = [for zone in var.zones : aws_subnet.private[zone].id]
  security_group_ids  = [aws_security_group.endpoints.id]
  policy              = local.endpoint_policies[each.key]

  tags = merge(var.tags, { Name = "${var.name}-${each.key}" })
}

# The streams of DynamoDB have an interface endpoint and no gateway, and AWS gives that endpoint no private name
# (https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/privatelink-streams.html). The processes ask the
# public name, so a zone of this network says where that is. That the endpoint answers to the public name, with its
# certificate, was not seen on AWS; where it does not, `nat` and no such endpoint (streams_endpoint) is the way.
resource "aws_vpc_endpoint" "streams" {
  count = var.streams_endpoint ? 1 : 0

  vpc_id              = aws_vpc.this.id
  vpc_endpoint_type   = "Interface"
  service_name        = "com.amazonaws.${var.region}.dynamodb-streams"
  private_dns_enabled = false
  subnet_ids          = [for zone in var.zones : aws_subnet.private[zone].id]
  security_group_ids  = [aws_security_group.endpoints.id]
  policy              = local.endpoint_policies["dynamodb-streams"]

  tags = merge(var.tags, { Name = "${var.name}-dynamodb-streams" })
}

resource "aws_route53_zone" "streams" {
  #checkov:skip=CKV2_AWS_38: a private zone can't be signed
  #checkov:skip=CKV2_AWS_39: Route 53 logs queries of public zones only
  count = var.streams_endpoint ? 1 : 0

  name    = "streams.dynamodb.${var.region}.${local.dns_suffix}"
  comment = "Where the endpoint of the streams of DynamoDB is, in this network."

  vpc {
    vpc_id = aws_vpc.this.id
  }

  tags = merge(var.tags, { Name = "${var.name}-dynamodb-streams" })
}

resource "aws_route53_record" "streams" {
  count = var.streams_endpoint ? 1 : 0

  zone_id = aws_route53_zone.streams[0].zone_id
  name    = aws_route53_zone.streams[0].name
  type    = "A"

  alias {
    name                   = aws_vpc_endpoint.streams[0].dns_entry[0].dns_name
    zone_id                = aws_vpc_endpoint.streams[0].dns_entry[0].hosted_zone_id
    evaluate_target_health = false
  }
}

resource "aws_cloudwatch_log_group" "flows" {
  #checkov:skip=CKV_AWS_338: flow logs hold addresses; how long they are kept is a setting, see its description
  name              = "/${var.name}/network-flows"
  retention_in_days = var.log_retention_days
  kms_key_id        = var.log_kms_key_arn

  tags = merge(var.tags, { Name = "${var.name}-network-flows" })
}

resource "aws_iam_role" "flows" {
  name        = "${var.name}-network-flows"
  description = "Writes the flow logs of the network."

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "vpc-flow-logs.amazonaws.com" }
      Action    = "sts:AssumeRole"
      Condition = {
        StringEquals = { "aws:SourceAccount" = var.account_id }
        ArnLike      = { "aws:SourceArn" = "arn:${local.partition}:ec2:${var.region}:${var.account_id}:vpc-flow-log/*" }
      }
    }]
  })

  tags = var.tags
}

resource "aws_iam_role_policy" "flows" {
  name = "write"
  role = aws_iam_role.flows.id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid      = "Write"
        Effect   = "Allow"
        Action   = ["logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"]
        Resource = "${aws_cloudwatch_log_group.flows.arn}:*"
      },
      {
        # AWS looks for the group among all of them, and knows no narrower right for that.
        Sid      = "Look"
        Effect   = "Allow"
        Action   = "logs:DescribeLogGroups"
        Resource = "arn:${local.partition}:logs:${var.region}:${var.account_id}:log-group:*"
      },
    ]
  })
}

resource "aws_flow_log" "this" {
  vpc_id                   = aws_vpc.this.id
  traffic_type             = "ALL"
  log_destination_type     = "cloud-watch-logs"
  log_destination          = aws_cloudwatch_log_group.flows.arn
  iam_role_arn             = aws_iam_role.flows.arn
  max_aggregation_interval = 600

  tags = merge(var.tags, { Name = var.name })
}
