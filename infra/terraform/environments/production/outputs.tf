output "system" {
  description = "Names, addresses and settings of the system: what the command line and the settings file are written from."
  value       = module.system
}
